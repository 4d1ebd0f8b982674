"""`fate-llm-ext privacy ratios`: what a mechanism that replaces words really gives on a model's own table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import click

if TYPE_CHECKING:
    from fate_llm_ext.algo.fedcot.perturbation.ratios import Ratios

_STRATEGIES = ("exponential", "fixed_vocabulary", "metric")

Line = Tuple[str, float, "Ratios"]  # strategy, its bound per word, what was found


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Folder whose input embedding counts.")
@click.option("--public", type=click.Path(path_type=Path), help="Take the words of this public set, not the model's.")
@click.option("--size", type=click.IntRange(2, 200_000), default=2000, show_default=True, help="Most words.")
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice(_STRATEGIES),
    multiple=True,
    default=_STRATEGIES,
    help="Only this one; again for more.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=click.FloatRange(0.0, 1e4, min_open=True),
    multiple=True,
    default=(1.0, 3.0, 8.0),
    help="Parameter of the strategy; again for more  [default: 1, 3, 8].",
)
@click.option(
    "--sharpness", type=click.FloatRange(min=1.0), default=1.0, show_default=True, help="Of fixed_vocabulary."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def ratios(
    strategies: Sequence[str], epsilons: Sequence[float], sharpness: float, as_json: bool, **source: Any
) -> None:
    """Compare the probabilities of all pairs of words under FedCoT's mechanisms; no private data is read.

    `largest` is the largest log-ratio that was found, `bound` what is proven; δ is what the nominal ε would need to
    be true of the worst pair and, on average, of any; `kept` is how often a word stands for itself.
    """
    from fate_llm_ext.algo.fedcot.config import PerturbationConfig
    from fate_llm_ext.algo.fedcot.perturbation.bounds import word_bound
    from fate_llm_ext.algo.fedcot.perturbation.mechanisms import make_mechanism
    from fate_llm_ext.algo.fedcot.perturbation.ratios import ratio_test

    vectors = _vectors(**source)
    lines: List[Line] = []
    for strategy in strategies:
        for epsilon in epsilons:
            config = PerturbationConfig.parse_obj({"strategy": strategy, "epsilon": epsilon, "sharpness": sharpness})
            lines.append(
                (strategy, word_bound(config.strategy, config.epsilon), ratio_test(make_mechanism(config, vectors)))
            )
    if as_json:
        found = [{"strategy": name, "bound": bound, **dataclasses.asdict(one)} for name, bound, one in lines]
        click.echo(json.dumps(found, indent=2))
    else:
        _print(lines)


def _vectors(model: Path, public: Optional[Path], size: int) -> Any:
    """As a job's client makes them."""
    import torch

    from fate_llm_ext.algo.fedcot.config import VocabularyConfig
    from fate_llm_ext.algo.fedcot.perturbation.vocabulary import build_vocabulary, embedding_table
    from fate_llm_ext.config import ModelConfig
    from fate_llm_ext.data.datasets import read_rows
    from fate_llm_ext.models.loading import load_base

    network, tokenizer = load_base(
        model, ModelConfig(name="model", dtype="float32"), torch.device("cpu"), encoder_decoder=True
    )
    texts = None
    if public is not None:
        texts = (value for row in read_rows(public) for value in row.values() if isinstance(value, str))
    return build_vocabulary(tokenizer, embedding_table(network), VocabularyConfig(size=size), texts).vectors


def _print(lines: Sequence[Line]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("strategy")
    for head in ("nominal ε", "bound", "largest", "δ, worst", "δ, mean", "kept"):
        table.add_column(head, justify="right")
    for strategy, bound, one in lines:
        numbers = (one.nominal, bound, one.largest, one.delta, one.delta_mean, one.kept)
        shown = [f"{number:.3g}" for number in numbers]
        shown[1] = shown[1].replace("inf", "none")
        table.add_row(strategy, *shown)
    Console(markup=False, highlight=False).print(table)
    first = lines[0][2]
    click.echo(
        f"{first.words:,} words; δ of {first.pairs:,} pairs of inputs, the rest of {first.inputs:,} words' rows."
    )

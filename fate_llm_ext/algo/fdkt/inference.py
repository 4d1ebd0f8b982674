"""What the `fdkt` component runs after training: the task model labels texts, each client for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

from fate_llm_ext.algo.control import clean
from fate_llm_ext.algo.facts import difference
from fate_llm_ext.algo.fdkt.checks import predict_problems
from fate_llm_ext.algo.fdkt.config import PredictConfig
from fate_llm_ext.algo.fdkt.heads import HEADS, Head
from fate_llm_ext.algo.fdkt.student import FACTS, facts, probabilities
from fate_llm_ext.algo.inference import Lines, predict_stage
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.datasets import has_split, read_rows
from fate_llm_ext.data.templates import Template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.classification import load_classifier
from fate_llm_ext.models.loading import load_base, resolve_device
from fate_llm_ext.models.lora import load_adapter
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Site, current_site


def run_predict(ctx: Any, role: Any, parameters: Dict[str, Any], test_data: Any, input_model: Any, output: Any) -> None:
    """Label every row of the party's table; the arbiter has none and does nothing.

    Writes ``predictions.jsonl``: row number, label, probability of each label. It never holds the text.
    """

    def lines() -> Lines:
        config = PredictConfig(**parameters)
        for problem in predict_problems(config, role.name):
            raise problem
        emit("phase", arm="", round=0, phase="loading")
        site = current_site(role.name, ctx.federation.local_party[1])
        head = load_head(Path(input_model.get_directory()), config, site)
        texts = read_texts(Path(test_data.get_directory()), config)
        emit("phase", arm="", round=0, phase="answering")
        return predictions(probabilities(head, texts, "answering"), config.control.values)

    predict_stage(ctx, role, test_data, input_model, output, lines)


def load_head(
    folder: Path, config: PredictConfig, site: Site, heartbeat: Callable[[str], None] = lambda _: None
) -> Head:
    """The task model that a train stage has written to ``folder``.

    Raises:
        ExtensionError: E721 it was trained with other parameters; E723 there is none; E402 to E408 or E722, it
            cannot be loaded.
    """
    check_facts(folder, config)
    network, tokenizer = _load(folder, config, site)
    return HEADS[config.head](network, tokenizer, config, heartbeat)


def check_facts(folder: Path, config: PredictConfig) -> None:
    """Whether the folder holds a task model that was trained with these parameters.

    Raises:
        ExtensionError: E721 a parameter differs; E723 the folder holds no task model.
    """
    found = difference(
        folder / FACTS,
        facts(config),
        lambda reason: ExtensionError("E723", folder=folder, reason=reason),
        order=("head",),  # whether there is a prompt depends on it
    )
    if found is not None:
        raise ExtensionError("E721", parameter=found.parameter, trained=found.trained, asked=found.asked)


def _load(folder: Path, config: PredictConfig, site: Site) -> Tuple[Any, Any]:
    adapter = config.student_weights == "lora"
    settings = config.student or ModelConfig(name="input_model")
    base = site.lookup("models", settings.name) if adapter else folder
    device, longest = resolve_device(site.device), config.control.max_length
    if config.head == "generation":
        network, tokenizer = load_base(base, settings, device, longest)
    else:
        network, tokenizer = load_classifier(base, settings, config.control.values, device, longest)
    return (load_adapter(network, folder) if adapter else network), tokenizer


def read_texts(table: Path, config: PredictConfig) -> List[str]:
    """The texts of a table's test split, or of all rows if it has one split only; labels need not be there."""
    split = "test" if has_split(table, "test") else "train"
    rows = read_rows(table, split, config.control.columns)[: config.evaluation.max_rows]
    template = Template("control", "", config.control.text, None)  # whatever the label's columns hold
    texts = [clean(example.answer or "") for example in template.examples(rows, source=table.name)]
    empty = [number for number, text in enumerate(texts, 1) if not text]
    if empty:
        columns = ", ".join(dict.fromkeys(name for row in rows for name in row))
        raise ExtensionError(
            "E661", path=table, count=len(empty), rows=len(rows), what="text", row=empty[0], columns=columns
        )
    return texts


def predictions(shares: np.ndarray, labels: List[str]) -> Lines:
    """Lines of the file, from the labels' probabilities (float [N, C])."""
    return [
        {
            "row": row,
            "prediction": labels[int(share.argmax())],
            "probabilities": {label: round(float(p), 6) for label, p in zip(labels, share)},
        }
        for row, share in enumerate(shares)
    ]

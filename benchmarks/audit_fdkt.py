"""What canaries in a small private table show of FDKT's generator, and of the texts D' that a client sends.

    python benchmarks/audit_fdkt.py [--seeds 3] [--base FOLDER] [--arms inf,inf:1.4,8,3] [--records N] [--samples N]

Prints the FDKT table of docs/privacy_audit.md; the last line is one JSON object. AG News is read at ../shared/assets.
The generator is planned, trained and sampled by the code of an FDKT client. --base takes a prepared model with its
tokenizer, e.g. one of conf/dpkd/models.sh; without it a small one is made here, as benchmarks/audit.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from audit import CONTROL, TOPICS, TextWorld, text_world
from common import finish, versions

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records, items
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.generator import sample_valid
from fate_llm_ext.algo.fdkt.release import plan
from fate_llm_ext.algo.synthesis import code_counts
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.scoring import Scorer
from fate_llm_ext.privacy.audit import lower_bound
from fate_llm_ext.privacy.audit_text import (
    TextCanaries,
    chance_exposure,
    exposure,
    insert_canaries,
    random_texts,
    synthetic_text_scores,
)
from fate_llm_ext.privacy.dp_training import DPTrainer
from fate_llm_ext.privacy.events import DataSet
from fate_llm_ext.privacy.sampling import Randomness

GROUPS = {1: 200, 8: 40}  # repeats -> canaries, of which half join
CANDIDATES = 1000  # texts of the same kind that were never trained on
RECORDS = 1000
SAMPLES = 2000
DELTA = 1e-5  # of the bounds


@dataclass
class Found:
    """What canaries of one number of repeats show.

    Attributes:
        repeats: how often each canary that joined is among the records.
        perplexity: of held-out news under the generator.
        texts: how many D' holds.
        exposure: mean bits under the generator, of those that joined; ``exposure_out``: of the others.
        sent: the same from D' alone; ``sent_out``: of the others.
        bound: on ε, from the generator's likelihoods.
        bound_sent: from D' alone.
        longest: longest run of words of a canary that joined in a text of D' (a canary has 8).
    """

    repeats: int
    perplexity: float
    texts: int
    exposure: float
    exposure_out: float
    sent: float
    sent_out: float
    bound: float
    bound_sent: float
    longest: int


def settings(epsilon: float, epochs: float = 10.0, samples: int = SAMPLES) -> FDKTConfig:
    """FDKT's defaults, but for all weights of the small generator at a rate that suits it."""
    return FDKTConfig(
        control=CONTROL.dict(),
        privacy={"epsilon": epsilon, "epochs": epochs, "learning_rate": 1e-2, "physical_batch_size": 64},
        generator={"name": "generator"},
        generator_weights="full",
        synthesis={"samples": samples, "top_k": 50, "top_p": 0.9, "max_new_tokens": 40, "batch_size": 256},
    )


def audit(world: TextWorld, arm: str, seed: int, records: int = RECORDS, samples: int = SAMPLES) -> list[Found]:
    """Insert canaries, train the generator, look at its likelihoods and at the texts that would be sent.

    Args:
        arm: ε, infinite for neither noise nor clipping, and behind a colon epochs, if not 10.
        records: rows of AG News beside the canaries.
        samples: texts to sample.
    """
    epsilon, _, epochs = arm.partition(":")
    config = settings(float(epsilon), float(epochs or 10), samples)
    coins = np.random.default_rng([4, seed])
    rows = coins.permutation(len(world.texts))[:records]
    texts, codes = [world.texts[row] for row in rows], world.codes[rows]
    groups: list[TextCanaries] = []
    for repeats, canaries in GROUPS.items():
        how = {"canaries": canaries, "repeats": repeats, "values": len(TOPICS), "coins": coins}
        texts, codes, group = insert_canaries(texts, codes, words=world.words, **how)
        groups.append(group)
    fresh = Records(
        coins.integers(len(TOPICS), size=CANDIDATES).astype(np.int32),
        random_texts(world.words, CANDIDATES, 8, coins),
    )
    generator = generator_of(world)
    before = [nll(generator, Records(group.codes, group.texts)) for group in groups]
    sent = train_and_write(generator, Records(codes, texts), config, seed)
    after = [nll(generator, Records(group.codes, group.texts)) for group in groups]
    known = nll(generator, fresh)
    quality = perplexity(generator, world.heldout)
    return [
        found(group, fresh, sent, quality, likelihoods, known) for group, *likelihoods in zip(groups, before, after)
    ]


def train_and_write(generator: Model, records: Records, config: FDKTConfig, seed: int) -> Records:
    """As a client does it, but with noise and sampling that follow from the seed."""
    planned = plan(config, DataSet("llm/news", "0" * 64, len(records)), "audit", ["arbiter 9998"]).training
    assert planned is not None
    if not planned.noise_multiplier:
        planned = dataclasses.replace(planned, max_grad_norm=math.inf)
    DPTrainer(
        generator.network,
        items(generator.encode(records)),
        planned,  # type: ignore[arg-type]
        config.privacy,
        pad_id=generator.pad_id,
        phase="training the generator",
        randomness=Randomness.seeded(seed),
    ).run(planned.steps)
    counts = code_counts(config.synthesis.samples, None, len(TOPICS))
    return sample_valid(generator, config.control, counts, config.synthesis, config.validity, seed=seed)[0]


def found(
    group: TextCanaries, fresh: Records, sent: Records, quality: float, likelihoods: list[np.ndarray], known: np.ndarray
) -> Found:
    """Scores of one group, from the generator and from D'."""
    before, after = likelihoods
    joined = group.included
    # One bigram model of D' for canaries and fresh texts: only then are their scores of one scale.
    scores = synthetic_text_scores([*group.texts, *fresh.texts], sent.texts)
    own, other = scores[:, : len(joined)], scores[:, len(joined) :]
    bits, sent_bits = exposure(after, known), exposure(-own[1], -other[1])
    return Found(
        group.repeats,
        quality,
        len(sent),
        float(bits[joined].mean()),
        float(bits[~joined].mean()),
        float(sent_bits[joined].mean()),
        float(sent_bits[~joined].mean()),
        lower_bound(before - after, joined, DELTA).epsilon_lower,
        lower_bound(own, joined, DELTA).epsilon_lower,
        int(np.floor(own[0, joined]).max()),
    )


def generator_of(world: TextWorld) -> Model:
    """The world's base model as a client loads it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "generator"
        save_model(world.base, world.tokenizer, folder, "")
        config = settings(8.0)
        assert config.generator is not None
        model = ModelConfig(name=config.generator.name)
        return Model(folder, model, "full", config.lora, CONTROL, 0, torch.device("cpu"), lambda _: None)


def nll(generator: Model, records: Records) -> np.ndarray:
    """Negative log-likelihood of each text given its code (float32 [N])."""
    encoded = generator.encode(records)
    scorer = Scorer(generator.network, generator.pad_id, 64)
    return scorer.answers([one.ids for one in encoded], [one.places for one in encoded]).nll


def perplexity(generator: Model, records: Records) -> float:
    """Per token."""
    tokens = sum(len(one.places) for one in generator.encode(records))
    return float(np.exp(nll(generator, records).sum() / tokens))


def report(world: TextWorld, arms: list[str], seeds: int, records: int, samples: int) -> dict[str, Any]:
    """Print the table; means over the seeds, of bounds and runs the largest."""
    base = perplexity(generator_of(world), world.heldout)
    figures: dict[str, Any] = {"base_perplexity": round(base, 1)}
    print(f"\nPerplexity of the base model: {base:.0f}. Exposure by chance: {chance_exposure(CANDIDATES):.2f} bits.")
    print(
        "\n| generator | perplexity | texts in D' | repeats | exposure in the generator: in / out | bound "
        "| exposure in D': in / out | longest run of words in D' | bound from D' |\n" + "|---" * 9 + "|"
    )
    for arm in arms:
        every = [audit(world, arm, seed, records, samples) for seed in range(seeds)]
        epsilon, _, epochs = arm.partition(":")
        name = ("not private" if epsilon == "inf" else f"ε {epsilon}") + (f", {epochs} epochs" if epochs else "")
        for number, repeats in enumerate(GROUPS):
            one = [each[number] for each in every]
            mean = {
                field.name: float(np.mean([getattr(each, field.name) for each in one]))
                for field in dataclasses.fields(Found)
            }
            bound, sent, longest = (max(getattr(each, w) for each in one) for w in ("bound", "bound_sent", "longest"))
            print(
                f"| {name} | {mean['perplexity']:.0f} | {mean['texts']:,.0f} | {repeats} "
                f"| {mean['exposure']:.1f} / {mean['exposure_out']:.1f} | {bound:.2f} "
                f"| {mean['sent']:.1f} / {mean['sent_out']:.1f} | {longest} | {sent:.2f} |",
                flush=True,
            )
            key = f"epsilon_{arm.replace(':', '_')}_{repeats}"
            figures |= {
                f"{key}_{what}": round(mean[what], 2) for what in ("exposure", "exposure_out", "sent", "sent_out")
            }
            figures |= {f"{key}_bound": round(bound, 2), f"{key}_bound_sent": round(sent, 2), f"{key}_longest": longest}
            figures[f"{key}_perplexity"] = round(mean["perplexity"], 1)
    return figures


def main(arguments: Optional[list[str]] = None) -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", type=Path, help="prepared model; default: made here")
    parser.add_argument("--arms", default="inf,inf:1.4,8,3", help="ε, or ε:epochs; inf: neither noise nor clipping")
    parser.add_argument("--records", type=int, default=RECORDS, help="rows of AG News beside the canaries")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="texts to sample")
    options = parser.parse_args(arguments)
    began = time.process_time()
    figures = report(text_world(options.base), options.arms.split(","), options.seeds, options.records, options.samples)
    figures["cpu_seconds"] = round(time.process_time() - began)
    print()
    finish("audit_fdkt", figures, **versions("torch", "transformers", "opacus"))


if __name__ == "__main__":
    main()

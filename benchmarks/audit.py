"""What audits of DP training find: planted faults, text canaries, canaries in synthetic text.

    python benchmarks/audit.py [--seeds 5] [--text-seeds 1] [--base FOLDER]

Prints the tables of docs/privacy_audit.md; the last line is one JSON object. The text part reads AG News at
../shared/assets, and the public text that its base model is made of. --base takes a prepared model instead, for example
one of conf/dpkd/models.sh. The faults are planted into the real trainer, one method each.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import transformers
from common import ROOT, finish, versions

from fate_llm_ext.algo.control import Records, encode_records, items
from fate_llm_ext.algo.synthesis import code_counts, synthesise
from fate_llm_ext.config import ControlConfig, GenerationConfig, PrivacyConfig, TrainConfig
from fate_llm_ext.models.corpus import read_documents
from fate_llm_ext.models.scoring import Scorer
from fate_llm_ext.models.tiny import TinyConfig, build_model, train_lm
from fate_llm_ext.models.tiny_tokenizer import train_tokenizer
from fate_llm_ext.privacy.audit import lower_bound
from fate_llm_ext.privacy.audit_gradients import GradientAudit, audit_sampling, audit_training
from fate_llm_ext.privacy.audit_text import (
    TextCanaries,
    chance_exposure,
    exposure,
    insert_canaries,
    random_texts,
    synthetic_text_scores,
    vocabulary_words,
)
from fate_llm_ext.privacy.clipping import LayerClipper
from fate_llm_ext.privacy.dp_training import DPPlan, DPTrainer, plan_training
from fate_llm_ext.privacy.sampling import Randomness
from fate_llm_ext.training.trainer import train_items

# Claimed ε 1.28 at δ 1e-5 for canaries that each step takes with probability 1/4.
PLAN = DPPlan(
    records=0,
    sampling_rate=0.25,
    steps=32,
    noise_multiplier=4.5,
    max_grad_norm=1.0,
    delta=1e-5,
    epsilon=1.28,
    accountant="prv",
)
GRADIENT_CANARIES = 2000
DATA = ROOT.parent / "shared" / "assets" / "data"
AG_NEWS = DATA / "ag_news" / "sample5000.csv"
TOPICS = ["World", "Sports", "Business", "Technology"]
CONTROL = ControlConfig(code="{{ label }}", values=TOPICS, max_length=48)


class NoiseOff(DPTrainer):
    """Fault: no noise."""

    def _add_noise(self) -> None:
        pass


class QuarterNoise(DPTrainer):
    """Fault: a quarter of the noise."""

    share = 0.25

    def _add_noise(self) -> None:
        claimed = self.plan
        self.plan = replace(claimed, noise_multiplier=claimed.noise_multiplier * self.share)
        super()._add_noise()
        self.plan = claimed


class HalfNoise(QuarterNoise):
    """Fault: half of the noise; too small a fault for an audit of this size."""

    share = 0.5


class NoiseReused(DPTrainer):
    """Fault: the noise is drawn once and added in every step."""

    _first: Any = None

    def _add_noise(self) -> None:
        self._first = self._first or self.randomness.state_dict()
        sampling = self.randomness.state_dict()["sampling"]
        self.randomness.load_state_dict({**self._first, "sampling": sampling})
        super()._add_noise()


class ClippingOff(DPTrainer):
    """Fault: gradients of any size."""

    def __init__(self, model: Any, records: Any, plan: DPPlan, config: PrivacyConfig, **options: Any) -> None:
        super().__init__(model, records, replace(plan, max_grad_norm=1e12), config, **options)
        self.plan = plan


class ClippedByLayer(DPTrainer):
    """Fault: the gradient of each layer's weights is clipped to C on its own."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._clipper.__class__ = _LayerByLayer


class _LayerByLayer(LayerClipper):
    def _square(self, number: int, pieces: list[Any]) -> torch.Tensor:
        (piece,) = pieces
        square = super()._square(number, pieces)
        factors = (self._max_grad_norm / square.sqrt()).clamp(max=1.0)
        piece.gradient.mul_(factors.view(-1, *[1] * (piece.gradient.dim() - 1)))
        return torch.zeros_like(square)  # leaves nothing to clip for all layers together


class Shuffled(DPTrainer):
    """Fault: fixed batches of a shuffled epoch, as common data loaders make them, accounted as Poisson samples."""

    _order: Any = None

    def _sample(self) -> np.ndarray:
        size = round(self.plan.expected_batch_size)
        if self._order is None or len(self._order) < size:
            self._order = self.randomness.sampling.permutation(self.plan.records)
        taken, self._order = self._order[:size], self._order[size:]
        return taken


FAULTS = {
    "correct code": DPTrainer,
    "noise off": NoiseOff,
    "noise at a quarter": QuarterNoise,
    "clipping off": ClippingOff,
    "clipping layer by layer": ClippedByLayer,
    "noise drawn once": NoiseReused,
    "noise at a half": HalfNoise,
}


def small_model() -> Any:
    """A GPT-2 of 4,000 weights: what is audited is the training, not the model."""
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"vocab_size": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=1, eos_token_id=2, **shape, **dropout))


def gradient_audit(
    trainer: type[DPTrainer],
    seed: int,
    per_sample: str = "hooks",
    plan: DPPlan = PLAN,
    canaries: int = GRADIENT_CANARIES,
    model: Any = None,
) -> GradientAudit:
    """One audited training; its random numbers follow from the seed."""
    return audit_training(
        model or small_model(),
        [],
        plan,
        PrivacyConfig(epsilon=plan.epsilon, physical_batch_size=64, per_sample=per_sample),
        pad_id=0,
        coins=np.random.default_rng([1, seed]),
        canaries=canaries,
        randomness=Randomness.seeded(seed),
        trainer=trainer,
    )


def sampling_audit(trainer: type[DPTrainer], seed: int) -> float:
    """p-value of Poisson sampling; 500 records, 64 steps, q 1/8."""
    return audit_sampling(
        small_model(),
        replace(PLAN, records=500, sampling_rate=0.125, steps=64),
        PrivacyConfig(epsilon=1.0, physical_batch_size=64, per_sample="hooks"),
        pad_id=0,
        coins=np.random.default_rng([2, seed]),
        randomness=Randomness.seeded(seed),
        trainer=trainer,
    )


@dataclass
class TextWorld:
    """A base model trained on public text, private news, and the words that canaries are made of."""

    tokenizer: Any
    base: Any
    texts: list[str]
    codes: np.ndarray
    heldout: Records
    words: list[str]

    def model(self) -> Any:
        """The base model, fresh."""
        return copy.deepcopy(self.base)


def text_world(base: Optional[Path] = None) -> TextWorld:
    """4,000 rows of AG News are private, the last 300 held out; the base model has not seen news.

    Args:
        base: folder of a prepared model with its tokenizer; without one, a small model is trained here.
    """
    if base is None:
        tokenizer, model = _small_base()
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with AG_NEWS.open(encoding="utf-8", newline="") as file:
        rows = [(text, int(label)) for text, label in csv.reader(file) if label.isdigit()]
    kept, heldout = _records(rows[:4000]), _records(rows[-300:])
    return TextWorld(tokenizer, model, kept.texts, kept.codes, heldout, vocabulary_words(tokenizer))


def _small_base() -> tuple[Any, Any]:
    """Tokenizer and GPT-2 of 234,000 weights, made from film reviews and encyclopedia articles."""
    public = list(islice(read_documents(DATA / "imdb" / "imdb_train_25k.jsonl.gz"), 3000))
    for split in ("valid", "test"):
        public += read_documents(DATA / "wikitext2" / f"{split}.txt")
    tokenizer = train_tokenizer(public, 2000)
    config = TinyConfig(hidden=64, layers=2, context=96, batch_tokens=1536, steps=800, seed=0)
    model = build_model(config, tokenizer)
    train_lm(model, tokenizer, public, config)
    return tokenizer, model


def _records(rows: list[tuple[str, int]]) -> Records:
    return Records(np.array([label for _, label in rows], dtype=np.int32), [text for text, _ in rows])


@dataclass
class TextAudit:
    """What canaries of one number of repeats show, and how well the model writes news (``perplexity``)."""

    repeats: int
    perplexity: float
    exposure: float
    exposure_out: float
    bound_model: float
    bound_texts: float
    run_in: float
    run_out: float
    longest: int


GROUPS = {1: 400, 4: 80, 16: 40}  # repeats -> canaries, of which half join
EPOCHS = 4


def text_audit(world: TextWorld, epsilon: Optional[float], seed: int, samples: int = 1500) -> list[TextAudit]:
    """Insert canaries, train, look at likelihoods and at ``samples`` synthetic texts; ε None is non-private."""
    coins = np.random.default_rng([3, seed])
    texts, codes, groups = list(world.texts), world.codes, []
    for repeats, canaries in GROUPS.items():
        settings = {"canaries": canaries, "repeats": repeats, "values": len(TOPICS)}
        texts, codes, group = insert_canaries(texts, codes, words=world.words, coins=coins, **settings)
        groups.append(group)
    fresh = random_texts(world.words, 1000, 8, coins)
    fresh_codes = coins.integers(len(TOPICS), size=1000).astype(np.int32)
    model = world.model()
    before = [_nll(model, world, group.texts, group.codes) for group in groups]
    _train(model, world, Records(codes, texts), epsilon, seed)
    candidates = _nll(model, world, fresh, fresh_codes)
    sampling = GenerationConfig(max_new_tokens=40, top_k=0, top_p=1.0, batch_size=256)
    counts = code_counts(samples, None, len(TOPICS))
    synthetic, _ = synthesise(model, world.tokenizer, CONTROL, counts, sampling, seed=seed)
    quality = perplexity(model, world)
    return [
        _text_result(group, quality, old, _nll(model, world, group.texts, group.codes), candidates, synthetic.texts)
        for group, old in zip(groups, before)
    ]


def _text_result(
    group: TextCanaries,
    quality: float,
    before: np.ndarray,
    after: np.ndarray,
    candidates: np.ndarray,
    synthetic: list[str],
) -> TextAudit:
    joined = group.included
    seen = synthetic_text_scores(group.texts, synthetic)
    runs = np.floor(seen[0])
    return TextAudit(
        group.repeats,
        quality,
        float(exposure(after[joined], candidates).mean()),
        float(exposure(after[~joined], candidates).mean()),
        lower_bound(before - after, joined, 1e-5).epsilon_lower,
        lower_bound(seen, joined, 1e-5).epsilon_lower,
        float(runs[joined].mean()),
        float(runs[~joined].mean()),
        int(runs[joined].max()),
    )


def perplexity(model: Any, world: TextWorld) -> float:
    """Of held-out news, per token."""
    encoded = encode_records(world.tokenizer, world.heldout, CONTROL)
    total = _nll(model, world, world.heldout.texts, world.heldout.codes).sum()
    return float(np.exp(total / sum(len(one.places) for one in encoded)))


def _nll(model: Any, world: TextWorld, texts: list[str], codes: np.ndarray) -> np.ndarray:
    encoded = encode_records(world.tokenizer, Records(codes, texts), CONTROL)
    scorer = Scorer(model, world.tokenizer.pad_token_id, 64)
    return scorer.answers([one.ids for one in encoded], [one.places for one in encoded]).nll


def _train(model: Any, world: TextWorld, records: Records, epsilon: Optional[float], seed: int) -> None:
    training = items(encode_records(world.tokenizer, records, CONTROL))
    pad = world.tokenizer.pad_token_id
    if epsilon is None:
        settings = TrainConfig(learning_rate=3e-3, batch_size=16, warmup_ratio=0.05)
        train_items(model, training, settings, epochs=EPOCHS, seed=seed, pad_id=pad, phase="training")
        return
    config = PrivacyConfig(
        epsilon=epsilon,
        batch_size=256,
        epochs=EPOCHS,
        learning_rate=1e-2,
        physical_batch_size=64,
        per_sample="hooks",
    )
    plan = plan_training(config, len(training))
    noise = Randomness.seeded(seed)
    DPTrainer(model, training, plan, config, pad_id=pad, phase="training", randomness=noise).run(plan.steps)


def report_gradients(seeds: int) -> dict[str, Any]:
    """Print the table of planted faults."""
    figures: dict[str, Any] = {}
    print("\n| training | claimed ε | lower bound (least .. most) | claim refuted |\n|---|---|---|---|")
    for name, trainer in FAULTS.items():
        audits = [gradient_audit(trainer, seed) for seed in range(seeds)]
        bounds = [audit.result.epsilon_lower for audit in audits]
        caught = sum(audit.caught for audit in audits)
        claimed = audits[0].claimed
        print(f"| {name} | {claimed:.2f} | {min(bounds):.2f} .. {max(bounds):.2f} | {caught} of {seeds} |")
        key = name.replace(" ", "_")
        figures |= {f"{key}_least_bound": round(min(bounds), 2), f"{key}_most_bound": round(max(bounds), 2)}
        figures[f"{key}_refuted"] = caught
    figures["claimed_epsilon"] = round(claimed, 3)
    print("\n| sampler | p-value (least .. most) | refuted at 0.001 |\n|---|---|---|")
    for name, trainer in (("Poisson (correct code)", DPTrainer), ("shuffled", Shuffled)):
        values = [sampling_audit(trainer, seed) for seed in range(seeds)]
        caught = sum(value < 1e-3 for value in values)
        print(f"| {name} | {min(values):.2g} .. {max(values):.2g} | {caught} of {seeds} |")
        figures[f"sampler_{name.split()[0].lower()}_refuted"] = caught
    return figures


def report_text(seeds: int, base: Optional[Path] = None) -> dict[str, Any]:
    """Print the table of text canaries."""
    world = text_world(base)
    figures: dict[str, Any] = {"base_perplexity": round(perplexity(world.model(), world), 1)}
    print(f"\nPerplexity of the base model: {figures['base_perplexity']:.0f}.")
    print(f"Exposure of texts never trained on: {chance_exposure(1000):.2f} bits; the most possible: 10.0 bits.")
    print(
        "\n| training | perplexity | repeats | exposure in bits: in / out | bound from the model "
        "| run of words in synthetic texts: in / out | longest | bound from the texts |\n" + "|---" * 8 + "|"
    )
    for name, epsilon in (("not private", None), ("ε 8", 8.0), ("ε 2", 2.0)):
        found = [text_audit(world, epsilon, seed) for seed in range(seeds)]
        key = "plain" if epsilon is None else f"epsilon_{epsilon:g}"
        for number, repeats in enumerate(GROUPS):
            one = [audits[number] for audits in found]
            means = {what: _mean(one, what) for what in ("perplexity", "exposure", "exposure_out", "run_in", "run_out")}
            models, texts, longest = (
                max(getattr(a, w) for a in one) for w in ("bound_model", "bound_texts", "longest")
            )
            print(
                f"| {name} | {means['perplexity']:.0f} | {repeats} | {means['exposure']:.1f} / "
                f"{means['exposure_out']:.1f} | {models:.2f} | {means['run_in']:.2f} / {means['run_out']:.2f} "
                f"| {longest} | {texts:.2f} |",
                flush=True,
            )
            figures |= {f"{key}_{repeats}_{what}": round(means[what], 2) for what in ("exposure", "exposure_out")}
            figures |= {f"{key}_{repeats}_bound_model": round(models, 2), f"{key}_{repeats}_longest_run": longest}
            figures[f"{key}_{repeats}_bound_texts"] = round(texts, 2)
        figures[f"{key}_perplexity"] = round(means["perplexity"], 1)
    return figures


def _mean(audits: list[TextAudit], what: str) -> float:
    return float(np.mean([getattr(audit, what) for audit in audits]))


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="of the planted faults; 0 leaves them out")
    parser.add_argument("--text-seeds", type=int, default=1, help="of the text canaries; 0 leaves them out")
    parser.add_argument("--base", type=Path, help="prepared model for the text canaries; default: made here")
    options = parser.parse_args()
    began = time.process_time()
    figures = report_gradients(options.seeds) if options.seeds else {}
    if options.text_seeds:
        figures |= report_text(options.text_seeds, options.base)
    figures["cpu_seconds"] = round(time.process_time() - began)
    print()
    finish("audit", figures, **versions("torch", "transformers", "opacus"))


if __name__ == "__main__":
    main()

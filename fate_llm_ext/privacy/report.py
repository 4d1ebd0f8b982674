"""What a party may say about privacy after a job: one statement, as JSON and for people.

A statement is made from what was charged to the ledger, never from what was asked for. It goes into the
party's events (type ``privacy``), from there into the page of the run, and beside the models. It holds
counts and parameters only: neither rows nor the data set's fingerprint, which would tell whoever knows all
records but one whether that one is there.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Protocol, Sequence, Union

from fate_llm_ext import __version__
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy.events import (
    DataSet,
    Gaussian,
    LocalDP,
    Mechanism,
    NonPrivate,
    PoissonGaussian,
    PostProcessing,
    PureDP,
    Release,
    mechanism_to_dict,
)
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Budget

if TYPE_CHECKING:
    from fate_llm_ext.privacy.accountants import Accountant

logger = logging.getLogger(__name__)

EVENT = "privacy"
INFINITE = "infinity"  # in JSON, which has no number for it

UNIT = "one record"
ADJACENCY = "add or remove one record"
ADJACENCY_LOCAL = "put one record's words in the place of placeholders, as many as there are, or the other way round"
RANDOMNESS = (
    "Records are sampled and noise is drawn by pseudo-random generators that are seeded from the operating system's "
    "entropy, independent of the job's seed, which every party knows. They are not cryptographic."
)
TRUST_PRIVATE = (
    "The mechanisms run at the data owner, who trusts its own site and nobody else: the guarantee holds against the "
    "arbiter, the other owners and whoever gets the outputs, alone or together, whatever else they know."
)
TRUST_NON_PRIVATE = (
    "Semi-honest parties: they follow the protocol. Nothing limits what the recipients can infer about single records."
)
TRUST_WITHOUT_DATA = "Semi-honest parties: they follow the protocol."
PUBLIC = ("the number of records", "the job's parameters", "the base models")
NOT_COVERED = (
    "choices made by looking at the private data or at results on it: hyper-parameters, number of runs, which data",
    "metrics and models that stay at the owner: they are computed without noise, and showing them is a release",
    "several records of one person: the unit is one record; one that stands at several owners pays at each of them",
    "side channels: when messages come (it may hint at how many records a step samples), how many they are, and that a "
    "task fails, and when",
    "floating-point arithmetic of the noise, and a generator that is not cryptographic",
    "what the base models were trained on",
)


@dataclass(frozen=True)
class Artefact:
    """Something that the task leaves behind.

    Attributes:
        name: e.g. ``adapter of the teacher``.
        private: whether the owners' guarantee covers it: it is computed from released outputs and public data alone.
        why: from what it was computed.
    """

    name: str
    private: bool
    why: str


class TrainingFacts(Protocol):
    """Parameters of DP-SGD as :class:`~fate_llm_ext.privacy.dp_training.DPPlan` has them: q, T, σ, C."""

    @property
    def sampling_rate(self) -> float: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def noise_multiplier(self) -> float: ...  # noqa: D102

    @property
    def max_grad_norm(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class LedgerTotal:
    """What the ledger of a data set says in all, this job included.

    Attributes:
        epsilon: composed at ``delta``; infinite after a release without privacy.
        delta: of the budget, or of the job where the site has set none.
        releases: number of entries.
        budget: what the site allows for the table, if it has said so.
    """

    epsilon: float
    delta: float
    releases: int
    budget: Optional[Budget] = None

    @property
    def left(self) -> Optional[float]:
        """Budget minus spending, not what a release may cost: that is composed with what was spent, not added to it."""
        if self.budget is None:
            return None
        return math.inf if math.isinf(self.budget.epsilon) else max(0.0, self.budget.epsilon - self.epsilon)


def statement(
    party: str,
    algorithm: str,
    *,
    data: Optional[DataSet] = None,
    releases: Sequence[Release] = (),
    delta: Optional[float] = None,
    accountant: Accountant = "prv",
    training: Optional[TrainingFacts] = None,
    clipping: str = "",
    ledger: Optional[LedgerTotal] = None,
    public: Sequence[str] = (),
    artefacts: Sequence[Artefact] = (),
    not_covered: Sequence[str] = (),
    audit: Optional[Mapping[str, Any]] = None,
    perturbation: Optional[Mapping[str, Any]] = None,
    notes: Sequence[str] = (),
) -> Dict[str, Any]:
    """The statement of one party about one task; what JSON can hold and nothing else.

    Args:
        party: e.g. ``guest 9999``.
        algorithm: e.g. ``dpkd``.
        data: the private table; None for a party that has none.
        releases: all that left the party in this task and derives from the table, as charged.
        delta: δ at which the releases are composed; needed if they are differentially private.
        accountant: who composes.
        training: parameters of DP-SGD, if it ran.
        clipping: how per-record gradients were made and clipped, for people.
        ledger: the ledger's total for the data set.
        public: what else counts as public, e.g. the control codes.
        artefacts: what the task leaves behind.
        not_covered: what else the guarantee does not cover.
        audit: figures of an audit that ran, e.g. ``{"epsilon_lower": 0.4, "confidence": 0.95}``.
        perturbation: how words were hidden one by one, e.g. ``{"strategy": "metric", "epsilon": 8.0}``.
        notes: what else has to be said about the guarantee, in sentences.
    """
    guarantee = _guarantee(data, releases, delta, accountant)
    private = data is not None and bool(releases) and guarantee["epsilon"] != INFINITE
    trust = TRUST_WITHOUT_DATA if data is None else TRUST_PRIVATE if private else TRUST_NON_PRIVATE
    return {
        "party": party,
        "algorithm": algorithm,
        "software": f"fate-llm-ext {__version__}",
        "data": None if data is None else {"table": data.table, "records": data.records},
        "guarantee": guarantee,
        "trust": trust,
        "releases": [_release(one, delta, accountant) for one in releases],
        "ledger": None if ledger is None else _ledger(ledger),
        "training": None if training is None else _training(training, data, delta, clipping),
        "public": [*(PUBLIC if private else ()), *public],
        "not_covered": [*(NOT_COVERED if private else ()), *not_covered],
        "randomness": RANDOMNESS if private else "",
        "artefacts": [{"name": one.name, "private": one.private, "why": one.why} for one in artefacts],
        "audit": None if audit is None else {name: to_json(value) for name, value in audit.items()},
        "perturbation": None if perturbation is None else dict(perturbation),
        "notes": list(notes),
    }


def publish(statement: Mapping[str, Any]) -> None:
    """Put the statement into the party's events, and its headline into the log."""
    logger.info("privacy: %s", headline(statement))
    emit(EVENT, **statement)


def save(statement: Mapping[str, Any], folder: Path) -> None:
    """Write ``privacy.json`` beside a model and its card."""
    text = json.dumps(statement, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "privacy.json").write_text(text + "\n", encoding="utf-8")


# -- for people -----------------------------------------------------------------------------------


def headline(statement: Mapping[str, Any]) -> str:
    """One line: the guarantee, and where the ledger stands."""
    data, guarantee, ledger = statement["data"], statement["guarantee"], statement["ledger"]
    if data is None:
        return f"{statement['party']}: no private table"
    if not statement["releases"]:
        text = f"nothing computed from {data['table']} leaves the party"
    elif guarantee["epsilon"] == INFINITE:
        text = f"ε = ∞ (no differential privacy) for {data['table']}"
    else:
        text = f"(ε, δ) = ({show_epsilon(guarantee['epsilon'])}, {show_delta(guarantee['delta'])}) for {data['table']}"
    spent = "" if ledger is None else f"; ledger: {_spending(ledger, guarantee['delta'])}"
    return f"{statement['party']}: {text}{spent}"


def card(statement: Mapping[str, Any]) -> str:
    """The section *Privacy* of a model card, in Markdown."""
    lines = ["## Privacy", "", statement["guarantee"]["text"], "", f"Trust: {statement['trust']}", ""]
    if statement["releases"]:
        lines += ["| what left this party | to | ε | mechanisms |", "|---|---|---|---|"]
        for one in statement["releases"]:
            cells = (one["what"], ", ".join(one["recipients"]), show_epsilon(one["epsilon"]), "; ".join(one["how"]))
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        lines.append("")
    lines += [f"- {name}: {text}" for name, text in facts(statement)]
    for one in statement["artefacts"]:
        lines.append(f"- {one['name']}: {artefact_text(one)}")
    for title, items in (("Public", statement["public"]), ("Not covered", statement["not_covered"])):
        if items:
            lines.append(f"- {title}: {'; '.join(items)}.")
    return "\n".join(lines).rstrip() + "\n"


def facts(statement: Mapping[str, Any]) -> List[List[str]]:
    """(name, text) of parameters and accounting, where there are any."""
    found: List[List[str]] = [["guarantee", text] for text in statement.get("notes", ())]
    training, guarantee, audit = statement["training"], statement["guarantee"], statement["audit"]
    if training is not None:
        found.append(["DP-SGD", _training_text(training)])
    if guarantee.get("accountant"):
        text = guarantee["accountant"]
        if guarantee.get("cross_check"):
            other = guarantee["cross_check"]
            text += f"; {other['accountant']} says ε = {show_epsilon(other['epsilon'])}"
        found.append(["accountant", text])
    if statement["randomness"]:
        found.append(["randomness", statement["randomness"]])
    if audit is not None:
        found.append(["audit", ", ".join(f"{name} {_short(value)}" for name, value in audit.items())])
    return found


def artefact_text(artefact: Mapping[str, Any]) -> str:
    """Whether the guarantee covers an artefact, and why."""
    return f"{'differentially private' if artefact['private'] else 'not differentially private'}: {artefact['why']}"


def show_epsilon(value: Union[float, str, None], down: bool = False) -> str:
    """Three digits, rounded up so that nothing looks cheaper than it is (what is left is rounded down)."""
    if value is None:
        return "-"
    if value == INFINITE or math.isinf(float(value)):
        return "∞"
    rounded = _three_digits(float(value), ROUND_FLOOR if down else ROUND_CEILING)
    digits = 2 if 1 <= rounded < 10 else 1 if 10 <= rounded < 100 else None
    return f"{rounded.normalize():f}" if digits is None else f"{rounded:.{digits}f}"


def show_delta(value: float) -> str:
    """Three digits, rounded up."""
    return f"{float(_three_digits(value, ROUND_CEILING)):.3g}"


def to_json(value: Any) -> Any:
    """The value; an infinite number as a word."""
    return INFINITE if isinstance(value, float) and math.isinf(value) else value


def mechanism_text(mechanism: Mechanism) -> str:
    """A mechanism in words."""
    if isinstance(mechanism, PoissonGaussian):
        return (
            f"DP-SGD: {mechanism.steps:,} steps on Poisson samples of rate {mechanism.sampling_rate:.4g}, "
            f"noise multiplier {mechanism.noise_multiplier:.4g}"
        )
    if isinstance(mechanism, Gaussian):
        return f"Gaussian noise of {mechanism.noise_multiplier:.4g} sensitivities on all records, x {mechanism.count}"
    if isinstance(mechanism, PureDP):
        return f"pure differential privacy, ε = {show_epsilon(mechanism.epsilon)}, x {mechanism.count}"
    if isinstance(mechanism, LocalDP):
        return (
            f"local differential privacy of each word, ε = {show_epsilon(mechanism.epsilon)}, x {mechanism.words} words"
        )
    if isinstance(mechanism, PostProcessing):
        return (
            f"post-processing of a release whose own statement says (ε, δ) = ({show_epsilon(mechanism.epsilon)}, "
            f"{show_delta(mechanism.delta)})"
        )
    return "none: not differentially private"


def _three_digits(value: float, rounding: str) -> Decimal:
    # The first nine digits first: what a float cannot hold of 0.1 is no reason to show 0.101.
    return Context(prec=3, rounding=rounding).create_decimal(f"{value:.9g}")


# -- parts ----------------------------------------------------------------------------------------


def _guarantee(
    data: Optional[DataSet], releases: Sequence[Release], delta: Optional[float], accountant: Accountant
) -> Dict[str, Any]:
    if data is None:
        return {"epsilon": None, "delta": None, "text": "This party has no private table in this task."}
    if not releases:
        text = "Nothing that was computed from private records left this party."
        return {"epsilon": 0.0, "delta": 0.0, "text": text}
    mechanisms = [mechanism for release in releases for mechanism in release.mechanisms]
    found = _compose(mechanisms, delta, accountant)
    if found["epsilon"] == INFINITE:
        text = (
            "Not differentially private: ε = ∞. What left this party was computed from private records, and nothing "
            "bounds what it tells about them."
        )
        return {"epsilon": INFINITE, "delta": None, "text": text}
    adjacency = ADJACENCY_LOCAL if any(isinstance(one, LocalDP) for one in mechanisms) else ADJACENCY
    text = (
        f"(ε, δ)-differential privacy with ε = {show_epsilon(found['epsilon'])}, δ = {show_delta(found['delta'])} for "
        f"all that left this party in this job. Unit: {UNIT}; neighbours: {adjacency}; the number of records counts "
        "as public."
    )
    if all(isinstance(one, PostProcessing) for one in mechanisms):
        paid = [one for one in mechanisms if isinstance(one, PostProcessing)]
        found = {"epsilon": max(one.epsilon for one in paid), "delta": max(one.delta for one in paid)}
        text = (
            f"(ε, δ)-differential privacy with ε = {show_epsilon(found['epsilon'])}, δ = {show_delta(found['delta'])}: "
            "what left this party in this job is post-processing of what has this guarantee by its own statement and "
            f"was charged when it was made, at no further cost. Unit: {UNIT}; neighbours: {ADJACENCY}."
        )
    definition = {"definition": "(ε, δ)-differential privacy", "unit": UNIT, "adjacency": adjacency}
    return {**found, **definition, "text": text}


def _compose(
    mechanisms: Sequence[Mechanism], delta: Optional[float], accountant: Accountant, check: bool = True
) -> Dict[str, Any]:
    """ε of several mechanisms, who says so, and what another accountant says."""
    if delta is None or any(isinstance(one, NonPrivate) for one in mechanisms):
        return {"epsilon": INFINITE, "delta": None}
    from fate_llm_ext.privacy.accountants import epsilon, version

    value = epsilon(mechanisms, delta, accountant)
    if math.isinf(value):
        return {"epsilon": INFINITE, "delta": None}
    found: Dict[str, Any] = {"epsilon": value, "delta": delta, "accountant": version(accountant)}
    return {**found, "cross_check": _cross_check(mechanisms, delta, accountant) if check else None}


def _cross_check(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant) -> Optional[Dict[str, Any]]:
    """What a second accountant says; None where its package, which is optional, is missing."""
    from fate_llm_ext.privacy.accountants import epsilon, version

    other: Accountant = "prv" if accountant == "pld" else "pld"
    try:
        return {"accountant": version(other), "epsilon": to_json(epsilon(mechanisms, delta, other))}
    except ExtensionError:
        return None


def _release(release: Release, delta: Optional[float], accountant: Accountant) -> Dict[str, Any]:
    return {
        "what": release.what,
        "recipients": list(release.recipients),
        "epsilon": _compose(release.mechanisms, delta, accountant, check=False)["epsilon"],
        "mechanisms": [mechanism_to_dict(one) for one in release.mechanisms],
        "how": [mechanism_text(one) for one in release.mechanisms],
    }


def _ledger(total: LedgerTotal) -> Dict[str, Any]:
    budget = total.budget
    return {
        "epsilon": to_json(total.epsilon),
        "delta": total.delta,
        "releases": total.releases,
        "budget": None if budget is None else {"epsilon": to_json(budget.epsilon), "delta": budget.delta},
        "left": to_json(total.left),
    }


def _training(facts: TrainingFacts, data: Optional[DataSet], delta: Optional[float], clipping: str) -> Dict[str, Any]:
    return {
        "sampling": "Poisson",
        "sampling_rate": facts.sampling_rate,
        "steps": facts.steps,
        "noise_multiplier": facts.noise_multiplier,
        "max_grad_norm": facts.max_grad_norm,
        "records": None if data is None else data.records,
        "delta": delta,
        "clipping": clipping,
    }


def _training_text(training: Mapping[str, Any]) -> str:
    words = [
        f"{training['records']:,} records (N)" if training["records"] is not None else "",
        f"Poisson sampling at rate {training['sampling_rate']:.4g} (q)",
        f"{training['steps']:,} steps (T)",
        f"noise multiplier {training['noise_multiplier']:.4g} (σ)",
        f"gradients clipped to {training['max_grad_norm']:.4g} (C)",
        training["clipping"],
    ]
    return ", ".join(word for word in words if word)


def _spending(ledger: Mapping[str, Any], delta: Optional[float]) -> str:
    spent, budget = show_epsilon(ledger["epsilon"]), ledger["budget"]
    text = f"{spent} spent, no budget" if budget is None else f"{spent} of {show_epsilon(budget['epsilon'])}"
    return text if spent == "∞" or ledger["delta"] == delta else f"{text} at δ = {show_delta(ledger['delta'])}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What happened to private data, as frozen facts: mechanisms, releases, data sets.

Two data sets are neighbours if one has one record more (add or remove one record). Accountants
(:mod:`~fate_llm_ext.privacy.accountants`) turn mechanisms into ε at a δ, the ledger
(:mod:`~fate_llm_ext.privacy.ledger`) keeps the releases of a data set. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Iterable, List, Mapping, Tuple, Type, Union

from fate_llm_ext.errors import ExtensionError


@dataclass(frozen=True)
class PoissonGaussian:
    """``steps`` Gaussian sums, each over a Poisson sample of the records: DP-SGD.

    Attributes:
        sampling_rate: q, the probability with which a step takes a record, in (0, 1].
        noise_multiplier: σ, the noise's standard deviation in units of the clipping norm; 0 is no noise.
        steps: T, number of steps.
    """

    kind: ClassVar[str] = "poisson_gaussian"
    sampling_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class Gaussian:
    """``count`` Gaussian mechanisms on all records, e.g. a noisy histogram.

    Attributes:
        noise_multiplier: σ in units of the L2 sensitivity (1 for a histogram with one record in one bin).
        count: how many times.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float
    count: int = 1


@dataclass(frozen=True)
class PureDP:
    """``count`` mechanisms of pure ε-DP: exponential mechanism, Laplace noise, randomised response.

    Attributes:
        epsilon: of one of them.
        count: how many times.
    """

    kind: ClassVar[str] = "pure"
    epsilon: float
    count: int = 1


@dataclass(frozen=True)
class LocalDP:
    """Every record's words went through an ε-local-DP mechanism one by one, each record by itself.

    Neighbours differ in one record: its words against as many placeholders, which stands for its absence where the
    number of records, and of words of each, counts as public.

    Attributes:
        epsilon: of one word: the largest log-ratio of probabilities of an output, over all pairs of words.
        words: the most words of a record that leave; a bound that does not depend on the records.
    """

    kind: ClassVar[str] = "local"
    epsilon: float
    words: int


@dataclass(frozen=True)
class PostProcessing:
    """Computed from what another release has paid for, and from public data: no further cost.

    Attributes:
        epsilon: of that release, for people.
        delta: at this δ.
    """

    kind: ClassVar[str] = "post_processing"
    epsilon: float
    delta: float


@dataclass(frozen=True)
class NonPrivate:
    """A release without differential privacy: ε = ∞."""

    kind: ClassVar[str] = "non_private"


Mechanism = Union[PoissonGaussian, Gaussian, PureDP, LocalDP, PostProcessing, NonPrivate]
_ALL: Tuple[Type[Any], ...] = (PoissonGaussian, Gaussian, PureDP, LocalDP, PostProcessing, NonPrivate)
_KINDS: Dict[str, Type[Any]] = {one.kind: one for one in _ALL}


@dataclass(frozen=True)
class DataSet:
    """A private table: its name at the site, what is in it, how many records.

    Attributes:
        table: ``<namespace>/<name>``.
        fingerprint: 64 hex digits of :func:`fingerprint_records`.
        records: N.
    """

    table: str
    fingerprint: str
    records: int


@dataclass(frozen=True)
class Release:
    """Something computed from private data that leaves its owner's hands.

    Attributes:
        algorithm: e.g. ``dpkd``.
        job: the job's id.
        what: what leaves, for people.
        recipients: party names.
        mechanisms: all that touched the private records on the way; what follows from their outputs alone is
            post-processing and not listed.
    """

    algorithm: str
    job: str
    what: str
    recipients: Tuple[str, ...]
    mechanisms: Tuple[Mechanism, ...]

    @property
    def private(self) -> bool:
        """Whether every mechanism is differentially private."""
        return not any(isinstance(one, NonPrivate) for one in self.mechanisms)


def mechanism_to_dict(mechanism: Mechanism) -> Dict[str, Any]:
    """``{"kind": ..., <fields>}``."""
    return {"kind": mechanism.kind, **dataclasses.asdict(mechanism)}


def mechanism_from_dict(value: Mapping[str, Any]) -> Mechanism:
    """The inverse of :func:`mechanism_to_dict`.

    Raises:
        ExtensionError: E601 for what is no known mechanism; nobody could say what it costs.
    """
    fields = dict(value)
    kind = fields.pop("kind", None)
    try:
        mechanism: Mechanism = _KINDS[str(kind)](**fields)
    except (KeyError, TypeError) as error:
        known = ", ".join(sorted(_KINDS))
        raise ExtensionError("E601", got=json.dumps(dict(value), default=str)[:200], known=known) from error
    return check_mechanism(mechanism)


def check_mechanism(mechanism: Mechanism) -> Mechanism:
    """The mechanism itself if its numbers make sense.

    Raises:
        ExtensionError: E602 for a value outside its range.
    """
    values: List[Tuple[str, float, float, float]] = []
    if isinstance(mechanism, PoissonGaussian):
        values = [
            ("sampling_rate", mechanism.sampling_rate, 0.0, 1.0),
            ("noise_multiplier", mechanism.noise_multiplier, 0.0, float("inf")),
            ("steps", mechanism.steps, 0, float("inf")),
        ]
    elif isinstance(mechanism, Gaussian):
        values = [
            ("noise_multiplier", mechanism.noise_multiplier, 0.0, float("inf")),
            ("count", mechanism.count, 0, float("inf")),
        ]
    elif isinstance(mechanism, PureDP):
        values = [("epsilon", mechanism.epsilon, 0.0, float("inf")), ("count", mechanism.count, 0, float("inf"))]
    elif isinstance(mechanism, LocalDP):
        values = [("epsilon", mechanism.epsilon, 0.0, float("inf")), ("words", mechanism.words, 0, float("inf"))]
    elif isinstance(mechanism, PostProcessing):
        values = [("epsilon", mechanism.epsilon, 0.0, float("inf")), ("delta", mechanism.delta, 0.0, 1.0)]
    for name, got, low, high in values:
        if isinstance(got, bool) or not isinstance(got, (int, float)) or not low <= got <= high:
            raise ExtensionError("E602", kind=mechanism.kind, name=name, got=got, low=low, high=high)
    return mechanism


def fingerprint_records(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 (64 hex digits) of the values of a table's rows as text, the same in whatever format they lie.

    Neither order nor names of rows and columns count, nor values that are empty: a copy as CSV, where all is text
    and the header may be missing, is the same table. Unlike the fingerprint of a public set it does not depend on
    the template: two tasks on one table spend from one budget.
    """
    digests = sorted(hashlib.sha256(_encode_row(row)).digest() for row in rows)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _encode_row(row: Mapping[str, Any]) -> bytes:
    values = sorted(filter(None, map(_text, row.values())))
    return json.dumps(values, ensure_ascii=True).encode()


def _text(value: Any) -> str:
    """A value as a CSV file would hold it; "" for None and NaN, lists and objects as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    text = str(value)
    return text.lower() if text.lower() in ("true", "false") else text

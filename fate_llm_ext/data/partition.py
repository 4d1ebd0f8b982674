"""Split rows among parties: evenly or skewed by label, and keep test rows out of training sets.

The partitions work on row numbers and labels; :func:`plan_split` puts them together for rows. All
results depend on the seed and on the parties' names, not on the order in which parties are given.
"""

from __future__ import annotations

import html
import math
import random
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from fate_llm_ext.errors import ExtensionError


def iid_partition(count: int, sizes: Mapping[str, int], seed: Union[int, str] = 0) -> Dict[str, List[int]]:
    """Draw disjoint random rows out of ``range(count)``, exactly ``sizes[party]`` for each party.

    Raises:
        ExtensionError: E212 more rows asked for than there are.
    """
    _enough(count, sizes)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    parts = {}
    for party in sorted(sizes):
        parts[party], order = order[: sizes[party]], order[sizes[party] :]
    return {party: parts[party] for party in sizes}


def label_partition(
    labels: Sequence[str], sizes: Mapping[str, int], alpha: float, seed: Union[int, str] = 0, minimum: int = 1
) -> Dict[str, List[int]]:
    """Label-skewed split: each party's label shares are drawn from Dirichlet(alpha, ..., alpha).

    Small ``alpha`` means few labels per party, large means equal shares (Hsu et al. 2019,
    "Measuring the Effects of Non-Identical Data Distribution"). When a class runs out, what is
    missing is drawn from the remaining classes in the party's own proportions, so sizes are exact.

    Args:
        labels: label of each row.
        sizes: rows per party.
        alpha: concentration, > 0.
        seed: of all draws.
        minimum: no party may ask for fewer rows.

    Raises:
        ExtensionError: E212 more rows asked for than there are, E214 alpha or a size out of range.
    """
    if not alpha > 0:
        raise ExtensionError("E214", option="alpha", reason=f"{alpha} is not greater than 0")
    for party, size in sizes.items():
        if size < minimum:
            raise ExtensionError("E214", option=party, reason=f"{size} rows, at least {minimum} are needed")
    _enough(len(labels), sizes)
    left = _rows_by_label(labels, seed)
    parts = {}
    for party in sorted(sizes):
        draw = random.Random(f"{seed}/{party}")
        shares = dict(zip(left, _dirichlet(len(left), alpha, draw)))
        counts = _counts(sizes[party], shares, {label: len(rows) for label, rows in left.items()})
        parts[party] = [left[label].pop() for label, number in counts.items() for _ in range(number)]
        draw.shuffle(parts[party])
    return {party: parts[party] for party in sizes}


@dataclass(frozen=True)
class Pool:
    """Rows in a template's canonical fields, with what was rendered from each: text to compare, answer or None."""

    rows: List[Dict[str, Any]] = field(default_factory=list)
    texts: List[str] = field(default_factory=list)
    answers: List[Optional[str]] = field(default_factory=list)

    def __add__(self, other: Pool) -> Pool:
        return Pool(self.rows + other.rows, self.texts + other.texts, self.answers + other.answers)

    def take(self, numbers: Sequence[int]) -> Pool:
        """The rows with these numbers, in this order."""
        return Pool(
            [self.rows[n] for n in numbers], [self.texts[n] for n in numbers], [self.answers[n] for n in numbers]
        )

    def without(self, others: Sequence[Pool]) -> Pool:
        """Leave out repeated rows and the rows that occur in the other pools."""
        pool = self.take(unique_rows(self.texts))
        return pool.take(exclude_rows(pool.texts, [text for other in others for text in other.texts]))

    def labelled(self) -> List[int]:
        """Numbers of the rows with an answer."""
        return [number for number, answer in enumerate(self.answers) if answer is not None]


@dataclass(frozen=True)
class SplitRequest:
    """How many rows go where. ``alpha`` None: even split; ``test`` None: all of a separate test pool, else 0."""

    sizes: Mapping[str, int]
    alpha: Optional[float] = None
    public: int = 0
    unlabelled: int = 0
    test: Optional[int] = None
    seed: int = 0


def plan_split(
    pool: Pool, request: SplitRequest, answer_fields: Sequence[str], test_pool: Optional[Pool] = None
) -> Dict[str, Dict[str, List[Dict[str, Any]]]]:
    """Folder -> split -> rows: each party, ``public`` (labelled rows first), the same test rows in all.

    Test and public rows are drawn evenly before the parties' rows. Rows without answer serve the
    unlabelled part first, then labelled ones lose their ``answer_fields``.

    Raises:
        ExtensionError: E212 more rows asked for than there are; E214 no labelled test row, or rows
            of this template are nothing but their answer.
    """
    labelled = pool.labelled()
    inner_test = 0 if test_pool else request.test or 0
    bare = sorted(set(range(len(pool.rows))) - set(labelled))[: request.unlabelled]
    asked = {"test": inner_test, "public": request.public, "unlabelled": request.unlabelled, **request.sizes}
    _enough(len(labelled) + len(bare), asked, "usable")
    inner = {"test": inner_test, "public": request.public, "unlabelled": request.unlabelled - len(bare)}
    drawn = iid_partition(len(labelled), inner, f"{request.seed}/common")
    used = {number for numbers in drawn.values() for number in numbers}
    rest = pool.take([row for number, row in enumerate(labelled) if number not in used])
    common = {name: pool.take([labelled[n] for n in numbers]) for name, numbers in drawn.items()}
    stripped = _strip(pool.take(bare) + common["unlabelled"], answer_fields)
    test = _test_rows(test_pool, request) if test_pool else common["test"].rows
    folders = {party: {"train": rest.take(numbers).rows} for party, numbers in _parts(rest, request).items()}
    if public := common["public"].rows + stripped:
        folders["public"] = {"train": public}
    return {name: {**splits, "test": test} if test else splits for name, splits in folders.items()}


def _parts(pool: Pool, request: SplitRequest) -> Dict[str, List[int]]:
    if request.alpha is None:
        return iid_partition(len(pool.rows), request.sizes, f"{request.seed}/parties")
    return label_partition([str(answer) for answer in pool.answers], request.sizes, request.alpha, request.seed)


def _strip(pool: Pool, answer_fields: Sequence[str]) -> List[Dict[str, Any]]:
    rows = [{name: value for name, value in row.items() if name not in answer_fields} for row in pool.rows]
    if not all(rows):
        raise ExtensionError("E214", option="--unlabelled", reason="rows of this template are nothing but their answer")
    return rows


def _test_rows(pool: Pool, request: SplitRequest) -> List[Dict[str, Any]]:
    labelled = pool.labelled()
    if not labelled:
        raise ExtensionError("E214", option="--test-from", reason="0 rows with an answer, at least 1 is needed")
    if request.test is None:
        return pool.take(labelled).rows
    drawn = iid_partition(len(labelled), {"test": request.test}, f"{request.seed}/test")
    return pool.take([labelled[n] for n in drawn["test"]]).rows


def text_key(text: str) -> str:
    """A text for comparison: lower case, HTML entities resolved, words only, single spaces."""
    return " ".join(re.findall(r"\w+", html.unescape(text).casefold()))


def unique_rows(texts: Sequence[str]) -> List[int]:
    """Numbers of the rows whose normalised text did not occur before."""
    first: Dict[str, int] = {}
    for number, text in enumerate(texts):
        first.setdefault(text_key(text), number)
    return list(first.values())


def exclude_rows(texts: Sequence[str], others: Iterable[str], prefix: int = 100) -> List[int]:
    """Numbers of the rows whose normalised text does not occur in ``others``.

    Texts agree if their first ``prefix`` characters do: published samples are often cut short, or
    differ in their last words. What all texts begin with (the wording of a prompt) does not count.
    """
    keys, known = [text_key(text) for text in texts], [text_key(text) for text in others]
    skip = _common_prefix(keys + known)
    taken = {key[skip : skip + prefix] for key in known}
    return [number for number, key in enumerate(keys) if key[skip : skip + prefix] not in taken]


def _common_prefix(keys: Sequence[str]) -> int:
    """Length of what all keys begin with; 0 if they are all the same."""
    first, last = min(keys, default=""), max(keys, default="")
    return next((at for at, (one, other) in enumerate(zip(first, last)) if one != other), 0)


def _enough(available: int, sizes: Mapping[str, int], what: str = "data") -> None:
    asked = sum(sizes.values())
    if asked > available:
        detail = ", ".join(f"{party} {size:,}" for party, size in sizes.items())
        raise ExtensionError("E212", asked=asked, what=what, available=available, detail=detail)


def _rows_by_label(labels: Sequence[str], seed: Union[int, str]) -> Dict[str, List[int]]:
    groups: Dict[str, List[int]] = {label: [] for label in sorted(set(labels))}
    for number, label in enumerate(labels):
        groups[label].append(number)
    for label, rows in groups.items():
        random.Random(f"{seed}/rows/{label}").shuffle(rows)
    return groups


def _dirichlet(size: int, alpha: float, draw: random.Random) -> List[float]:
    """One draw of Dirichlet(alpha), in logarithms: Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha) underflows."""
    logs = [math.log(draw.gammavariate(alpha + 1, 1)) + math.log(1 - draw.random()) / alpha for _ in range(size)]
    weights = [math.exp(value - max(logs)) for value in logs]
    return [weight / sum(weights) for weight in weights]


def _counts(size: int, shares: Mapping[str, float], left: Mapping[str, int]) -> Dict[str, int]:
    """Whole numbers that sum to ``size``, near ``size * shares``, none above ``left``."""
    counts = dict.fromkeys(left, 0)
    while missing := size - sum(counts.values()):
        free = {label: left[label] - counts[label] for label in left if counts[label] < left[label]}
        weights = {label: shares[label] for label in free}
        if not sum(weights.values()) > 0:  # the party's own classes ran out
            weights = {label: float(rows) for label, rows in free.items()}
        for label, number in _round(missing, weights).items():
            counts[label] += min(number, free[label])
    return counts


def _round(total: int, weights: Mapping[str, float]) -> Dict[str, int]:
    """Largest remainders: whole numbers that sum to ``total``, proportional to ``weights``."""
    scale = total / sum(weights.values())
    counts = {label: int(weight * scale) for label, weight in weights.items()}
    rest = sorted(weights, key=lambda label: counts[label] - weights[label] * scale)
    for label in rest[: total - sum(counts.values())]:
        counts[label] += 1
    return counts

"""Which of a client's texts become demonstrations (arXiv 2405.14212, section on the server).

Texts are clustered by their embeddings; of each cluster the LLM chooses those that are eligible and do not say the
same. Where its answer cannot be read, or if the job says so, the embeddings choose.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors

from fate_llm_ext.algo.answering import watched
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.choices import parse_numbers
from fate_llm_ext.algo.fdkt.config import FilterConfig
from fate_llm_ext.algo.fdkt.prompts import Prompts
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import Completion, Engine

logger = logging.getLogger(__name__)

_DOING = "choosing demonstrations"
# A cluster of more than this many times the usual number of texts is shown to the LLM in parts.
_LARGEST = 2
_BATCH_SIZE = 16  # prompts of a local LLM at a time; they are long
# Vectors as near as this are the same but for rounding.
_SAME = 1e-4

Group = np.ndarray  # rows that are judged together (int64 [m])


@dataclass(frozen=True, eq=False)
class Filtered:
    """Which texts become demonstrations.

    Attributes:
        kept: bool [N].
        dropped: reason (``judged``: by the LLM, ``duplicate``, ``outlier``: by distance) -> texts dropped for it.
        clusters: groups of texts that were judged, each for itself.
        unread: of them, those about which the LLM's answer could not be read, so that distance chose.
        too_long: of them, single texts that do not fit into the LLM's context, likewise.
        per_code: kept texts of each label (int64 [C]).
        emptied: labels (codes) that had texts and have none left.
    """

    kept: np.ndarray
    dropped: Dict[str, int]
    clusters: int
    unread: int
    too_long: int
    per_code: np.ndarray
    emptied: Tuple[int, ...]


def select_demonstrations(
    records: Records,
    labels: Sequence[str],
    embeddings: np.ndarray,
    engine: Engine,
    prompts: Prompts,
    config: FilterConfig,
    *,
    description: str,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Filtered:
    """Choose among a client's texts.

    Args:
        records: N texts with their labels.
        labels: C names.
        embeddings: of the texts, of length 1 (float32 [N, d]).
        engine: of the LLM, which is asked about all clusters at once; not with ``judge: distance``.
        description: what the texts are.
        seed: of the clustering; the LLM answers greedily.

    Raises:
        ExtensionError: E325 there are no texts, or not as many as embeddings; and what the engine raises.
    """
    if not len(records) or embeddings.shape[:1] != (len(records),):
        raise ExtensionError("E325", what="embeddings of texts", got=embeddings.shape, expected=(len(records), "d > 0"))
    heartbeat(_DOING)
    points = spread(embeddings)
    groups = clustered(points, config.samples_per_cluster, seed)
    outlying = outliers(embeddings, config.outlier_share, config.samples_per_cluster)
    verdict = _Verdict(records, points, outlying, config.duplicate_similarity)
    if config.judge == "distance":
        for group in groups:
            verdict.by_distance(group)
        return verdict.result(len(groups), 0, 0, len(labels))
    judge = _Judge(engine, prompts, config, labels, description, records.texts)
    asked, too_long = judge.fitting(groups, points, _LARGEST * config.samples_per_cluster)
    open_rows = np.zeros(len(records), dtype=bool)
    open_rows[[row for group in too_long for row in group]] = True
    unread = 0
    for group, answer in zip(asked, judge.ask(asked, seed, heartbeat)):
        chosen = parse_numbers(_whole(answer, len(group)), len(group))
        if chosen is None:
            unread += 1
            open_rows[group] = True
        else:
            verdict.take(group, np.isin(np.arange(1, len(group) + 1), chosen), "judged")
    for group in groups:  # what was split is whole again here: parts of one text each have no duplicates
        verdict.by_distance(group[open_rows[group]])
    return verdict.result(len(asked) + len(too_long), unread, len(too_long), len(labels))


# --- by embeddings -----------------------------------------------------------------------------------


def spread(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings without their common direction, of length 1 again (float32 [N, d]); zero where nothing is left.

    Hidden states of language models lie in a narrow cone, where all cosine similarities are near 1.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    points: np.ndarray = np.where(lengths > _SAME, centred / np.maximum(lengths, _SAME), 0.0).astype(np.float32)
    return points


def clustered(points: np.ndarray, size: int, seed: int) -> List[Group]:
    """k-means with ceil(N / size) clusters, fewer if there are not as many different points; rows in their order."""
    wanted = -(-len(points) // size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal points leave clusters empty, and these go
        found = KMeans(wanted, n_init=1, random_state=seed).fit_predict(points)
    return [np.flatnonzero(found == cluster) for cluster in np.unique(found)]


def parts(group: Group, points: np.ndarray, size: int) -> List[Group]:
    """A group in parts of at most ``size`` rows, near ones in one part; rows in their order."""
    count = -(-len(group) // size)
    if count == 1:
        return [group]
    mine = points[group] - points[group].mean(axis=0)
    farthest = mine[np.linalg.norm(mine, axis=1).argmax()]
    order = np.argsort(mine @ farthest, kind="stable")
    return [np.sort(group[part]) for part in np.array_split(order, count)]


def outliers(embeddings: np.ndarray, share: float, size: int) -> np.ndarray:
    """The share of texts that are farthest from their nearest ones, as many as a cluster has (bool [N]).

    Not from their cluster's centre, for what lies far off has a cluster of its own; and by the embeddings as they
    are, for what leaves the cone of all others is told by how far it goes, not in which direction. Texts at a usual
    distance, up to the median, are none whatever the share is.
    """
    result = np.zeros(len(embeddings), dtype=bool)
    count = int(share * len(embeddings))
    neighbours = min(size, len(embeddings) - 1)
    if not count or not neighbours:
        return result
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(embeddings).kneighbors()
    means = distances.mean(axis=1)
    farthest = np.argsort(-means, kind="stable")[:count]
    result[farthest[means[farthest] > np.median(means)]] = True
    return result


def duplicates(points: np.ndarray, similarity: float) -> np.ndarray:
    """Points [m, d] that have a more central one near them (bool [m])."""
    result = np.zeros(len(points), dtype=bool)
    near = points @ points.T > similarity
    near |= ~points.any(axis=1)[:, None] & ~points.any(axis=1)[None]
    centre = points.mean(axis=0)
    order = np.argsort(np.linalg.norm(points - centre, axis=1), kind="stable")
    for rank, row in enumerate(order):
        before = order[:rank]
        result[row] = bool((near[row, before] & ~result[before]).any())
    return result


class _Verdict:
    """What becomes of each text."""

    def __init__(self, records: Records, points: np.ndarray, outlying: np.ndarray, similarity: float) -> None:
        self._codes = records.codes
        self._points = points
        self._outlying = outlying
        self._similarity = similarity
        self._kept = np.ones(len(records), dtype=bool)
        self._dropped = {"judged": 0, "duplicate": 0, "outlier": 0}

    def take(self, group: Group, keep: np.ndarray, reason: str) -> None:
        """Keep those of a group for which ``keep`` (bool [m]) holds."""
        self._dropped[reason] += int((~keep).sum())
        self._kept[group[~keep]] = False

    def by_distance(self, group: Group) -> None:
        """Near duplicates and outliers of a group go."""
        if not len(group):
            return
        double = duplicates(self._points[group], self._similarity)
        self.take(group, ~double, "duplicate")
        rest = group[~double]
        self.take(rest, ~self._outlying[rest], "outlier")

    def result(self, clusters: int, unread: int, too_long: int, labels: int) -> Filtered:
        """The whole, with a word about what did not go as planned."""
        if unread or too_long:
            logger.warning(
                "of %d clusters the LLM's answer about %d could not be read and %d were too long for its context; "
                "there distance chose", clusters, unread, too_long,
            )  # fmt: skip
        before, after = (np.bincount(codes, minlength=labels) for codes in (self._codes, self._codes[self._kept]))
        emptied = tuple(np.flatnonzero((before > 0) & (after == 0)).tolist())
        if emptied:
            logger.warning("%d of %d labels have no text left as a demonstration", len(emptied), labels)
        return Filtered(self._kept, self._dropped, clusters, unread, too_long, after, emptied)


# --- by the LLM --------------------------------------------------------------------------------------


class _Judge:
    """The LLM, asked about groups of texts."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        config: FilterConfig,
        labels: Sequence[str],
        description: str,
        texts: Sequence[str],
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._labels = labels
        self._description = description
        self._texts = texts
        self._config = GenerationConfig(
            temperature=1e-3, top_k=1, top_p=1.0, max_new_tokens=config.max_new_tokens, batch_size=_BATCH_SIZE
        )

    def fitting(self, groups: Sequence[Group], points: np.ndarray, size: int) -> Tuple[List[Group], List[Group]]:
        """The groups in parts of at most ``size`` that fit into the LLM's context; and single texts that do not."""
        fitting: List[Group] = []
        too_long: List[Group] = []
        waiting = [part for group in groups for part in parts(group, points, size)]
        while waiting:
            fits = self._engine.fits([self._prompt(group) for group in waiting], self._config)
            fitting += [group for group, one in zip(waiting, fits) if one]
            large = [group for group, one in zip(waiting, fits) if not one]
            too_long += [group for group in large if len(group) == 1]
            waiting = [half for group in large if len(group) > 1 for half in parts(group, points, -(-len(group) // 2))]
        return fitting, too_long

    def ask(self, groups: Sequence[Group], seed: int, heartbeat: Callable[[str], None]) -> List[Completion]:
        """The LLM's answer about each group."""
        if not groups:
            return []
        asked = [self._prompt(group) for group in groups]
        return self._engine.generate(asked, self._config, seed=seed, step=watched(_DOING, heartbeat))

    def _prompt(self, group: Group) -> str:
        return self._prompts.judge(self._description, self._labels, [self._texts[row] for row in group])


def _whole(answer: Completion, count: int) -> str:
    """The answer without a last number of which the end may be missing."""
    text = answer.text
    digits = len(text) - len(text.rstrip("0123456789"))
    if answer.finished or not digits or int(text[-digits:][-9:]) * 10 > count:
        return text
    return text[:-digits]

"""How good made texts are, beside the real ones: fidelity, labels, diversity. Measured at the client, sent nowhere.

All features are TF-IDF weights of words and word pairs, so the figures depend on no model. They compare sets of texts
of like size beside the same real texts; by themselves they say little.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Dict, List, Sequence, Set, Tuple

import numpy as np
from scipy.special import rel_entr
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from fate_llm_ext.algo.control import Records

MOST = 2000  # records of either side that are looked at
_FOLDS = 5
_TOKEN = r"(?u)\w+|[^\w\s]"
_FEATURES = 20_000
_DIMENSIONS = 64  # of the features that are clustered
_PER_CLUSTER = 10  # texts of the smaller side in a cluster, on average
_SCALE = 5.0  # c of the divergence frontier
_MIXTURES = 99
_NOTHING = float("nan")


def stage_quality(real: Records, made: Records, seed: int) -> Dict[str, float]:
    """Figures on made texts; of either side at most 2,000 are looked at, drawn by ``seed``.

    ``fidelity_auc``     :func:`two_sample_auc`: 0.5 made and real texts cannot be told apart, 1 every one can.
    ``mauve``            :func:`mauve`: 1 alike, 0 disjoint.
    ``label_agreement``  share of the made texts to which a judge trained on the real ones gives the label they have.
    ``judge_accuracy``   share of the real texts that a judge trained on the others of them gets right: an agreement
                         is to be compared with it.
    ``distinct_2``       share of different ones among all word pairs of the made texts.
    ``self_overlap``     mean share of a made text's 4-grams of words that stand in another one of them as well.

    A figure for which there are too few texts, words or labels is left out.
    """
    generator = np.random.default_rng(seed)
    real, made = _sample(real, generator), _sample(made, generator)
    if not len(real) or not len(made):
        return {}
    with threadpool_limits(1):  # so small are the matrices that threads mostly wait for each other
        return _figures(real, made, seed)


def _figures(real: Records, made: Records, seed: int) -> Dict[str, float]:
    agreement, accuracy = label_agreement(real, made, seed)
    found = {
        "fidelity_auc": two_sample_auc(real.texts, made.texts, seed),
        "mauve": mauve(real.texts, made.texts, seed),
        "label_agreement": agreement,
        "judge_accuracy": accuracy,
        "distinct_2": distinct_share(made.texts),
        "self_overlap": self_overlap(made.texts),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


# -- fidelity ---------------------------------------------------------------------------------------


def two_sample_auc(real: Sequence[str], made: Sequence[str], seed: int) -> float:
    """AUC of a classifier two-sample test (arXiv 1610.06545): logistic regression, 5-fold cross-validation.

    The AUC is that of all held-out scores together; vocabulary and weights come from the training folds alone, and
    both sides weigh the same. Repetitions within a side count once: in another fold they would be known by heart,
    and they show in the diversity.

    Returns:
        NaN with fewer than 5 different texts on a side.
    """
    one, other = list(dict.fromkeys(real)), list(dict.fromkeys(made))
    if min(len(one), len(other)) < _FOLDS:
        return _NOTHING
    side = np.repeat([0, 1], [len(one), len(other)])
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(_judge(seed, "balanced"), [*one, *other], side, cv=folds, method="decision_function")
    return float(roc_auc_score(side, scores))


def mauve(real: Sequence[str], made: Sequence[str], seed: int) -> float:
    """MAUVE (arXiv 2102.01454) on k-means clusters of TF-IDF features, reduced by SVD.

    Either side becomes a histogram over the clusters, of which there is one per 10 texts of the smaller side;
    :func:`frontier_area` of the two. Sides of one distribution give about 0.95: histograms of few texts differ by
    chance.

    Returns:
        NaN with fewer than 20 texts on a side.
    """
    texts = [*real, *made]
    if min(len(real), len(made)) < 2 * _PER_CLUSTER:
        return _NOTHING
    features = _vectorizer().fit_transform(texts)
    size = min(_DIMENSIONS, features.shape[1] - 1)
    reduced = TruncatedSVD(size, random_state=seed).fit_transform(features) if size > 0 else features.toarray()
    clusters = max(2, min(len(real), len(made)) // _PER_CLUSTER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different texts than clusters: the rest stay empty
        places = KMeans(clusters, n_init=3, random_state=seed).fit_predict(normalize(reduced))
    p, q = (np.bincount(part, minlength=clusters) / len(part) for part in np.split(places, [len(real)]))
    return frontier_area(p, q)


def frontier_area(p: np.ndarray, q: np.ndarray, scale: float = _SCALE) -> float:
    """Area under the divergence frontier of two histograms (float64 [K] each), in [0, 1].

    Its points are (exp(-c KL(q, r)), exp(-c KL(p, r))) of the mixtures r = λ p + (1 - λ) q, with (0, 1) and (1, 0) as
    its ends; c is ``scale``.
    """
    share = np.linspace(0.0, 1.0, _MIXTURES + 2)[1:-1, None]
    mixtures = share * p + (1.0 - share) * q
    x, y = (np.exp(-scale * rel_entr(one, mixtures).sum(axis=1)) for one in (q, p))
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])  # λ rises: x falls, y rises
    return float(np.sum((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2.0))


# -- labels -----------------------------------------------------------------------------------------


def label_agreement(real: Records, made: Records, seed: int) -> Tuple[float, float]:
    """How often a judge trained on the real texts gives the made ones their labels, and how good the judge is.

    The judge is a logistic regression. Made texts of a label that no real text has are not looked at.

    Returns:
        The share of agreement, and the judge's accuracy on real texts by 5-fold cross-validation (labels with one
        text are left out of that); NaN where there are fewer than two labels or no text to judge.
    """
    known = np.unique(real.codes)
    judged = np.flatnonzero(np.isin(made.codes, known))
    if len(known) < 2 or not len(judged):
        return _NOTHING, _NOTHING
    judge = _judge(seed).fit(real.texts, real.codes)
    said = judge.predict([made.texts[i] for i in judged])
    return float(accuracy_score(made.codes[judged], said)), _accuracy(real, seed)


def _accuracy(real: Records, seed: int) -> float:
    counts = np.bincount(real.codes)
    rows = np.flatnonzero(counts[real.codes] > 1)
    if len(np.unique(real.codes[rows])) < 2:
        return _NOTHING
    folds = StratifiedKFold(min(_FOLDS, int(counts.max())), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some label has fewer texts than there are folds
        said = cross_val_predict(_judge(seed), [real.texts[i] for i in rows], real.codes[rows], cv=folds)
    return float(accuracy_score(real.codes[rows], said))


# -- diversity --------------------------------------------------------------------------------------


def distinct_share(texts: Sequence[str], size: int = 2) -> float:
    """Different word n-grams of all texts by their number, which falls as the texts get more; NaN without any."""
    grams = [gram for text in texts for gram in _grams(text, size)]
    return len(set(grams)) / len(grams) if grams else _NOTHING


def self_overlap(texts: Sequence[str], size: int = 4) -> float:
    """Mean over the texts of the share of their different word n-grams that stand in another text, too.

    Texts shorter than an n-gram are not looked at; NaN if all are.
    """
    sets: List[Set[Tuple[str, ...]]] = [found for found in (set(_grams(text, size)) for text in texts) if found]
    holders = Counter(gram for found in sets for gram in found)
    shares = [sum(holders[gram] > 1 for gram in found) / len(found) for found in sets]
    return float(np.mean(shares)) if shares else _NOTHING


def _grams(text: str, size: int) -> List[Tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[start:] for start in range(size))))


# -- pieces -----------------------------------------------------------------------------------------


def _sample(records: Records, generator: np.random.Generator) -> Records:
    if len(records) <= MOST:
        return records
    rows = np.sort(generator.choice(len(records), MOST, replace=False))
    return records.take(rows)


def _vectorizer() -> Any:
    # Punctuation counts as words do: every text has a token, in whatever script it is.
    return TfidfVectorizer(token_pattern=_TOKEN, ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES)


def _judge(seed: int, class_weight: Any = None) -> Any:
    regression = LogisticRegression(C=10.0, class_weight=class_weight, max_iter=1000, random_state=seed)
    return make_pipeline(_vectorizer(), regression)

"""The attacks of a job on a client's own questions; the client knows the truth, and nothing of this leaves it.

The attacker knows all that is public: mechanism, vocabulary, vectors, the language. What it reads in the questions:

``attack_nearest``     the word that left, taken for the true one: the share of words that stayed.
``attack_nearest_10``  the true word is among the 10 nearest to the one that left: a hint, no guess.
``attack_bayes``       argmax over x of p(x) P(y|x), the best guess from one word alone.
``attack_bag``         the word left somewhere in its record, for a strategy that may move words about. Beside it stands
                       ``attack_bag_prior``, the same in another record's question: the excess is what counts.
``attack_infill``      argmax of P(y|x) P(x between its neighbours as they left), over the most probable x; P is half
                       the language model's, half p(x).
``attack_prior``       always the most probable word, without a look at the questions: what no mechanism can prevent.

Each is a share of the attacked words that the vocabulary has (``attack_words``), with ``_low`` and ``_high`` of its
Clopper-Pearson 95 % interval. ``attack_success`` is the best method's share, ``attack_unknown_success`` that of the
units that the vocabulary has not (``attack_unknown``), by the best method for these; ``attack_documents`` and
``attack_overlap`` are about whole records. ``ratio_largest`` and ``ratio_delta`` are those of the ratio test.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
from scipy.special import log_softmax

from fate_llm_ext.algo.fedcot.attacks.infill import Infiller
from fate_llm_ext.algo.fedcot.attacks.inversion import (
    Candidates,
    different,
    nearest_words,
    posterior,
    word_prior,
)
from fate_llm_ext.algo.fedcot.attacks.sample import (
    Sample,
    draw_sample,
    record_figures,
    right_guesses,
    unknown_guesses,
    words_that_occur,
)
from fate_llm_ext.algo.fedcot.attacks.shares import share
from fate_llm_ext.algo.fedcot.config import AttackConfig
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import Mechanism
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturbed
from fate_llm_ext.algo.fedcot.perturbation.ratios import ratio_test
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary

NEAR = 10  # words that a hint may name
CANDIDATES = 64  # words that the language model is asked about, roughly,
SHORTLIST = 4  # and exactly

Heartbeat = Callable[[], None]
Guesses = Dict[str, np.ndarray]  # method -> guessed word, int32 [n]


def attack_words(
    config: AttackConfig,
    perturbed: Perturbed,
    vocabulary: Vocabulary,
    mechanism: Mechanism,
    *,
    closed_form: bool = True,
    prior: Optional[np.ndarray] = None,
    infiller: Optional[Infiller] = None,
    seed: int = 0,
    heartbeat: Heartbeat = lambda: None,
) -> Dict[str, float]:
    """Figures on words that left in place of others.

    Args:
        closed_form: P(y|x) is what the mechanism says, word by word. Else it is no more than the attacker's idea of it
            (``adaptive_exponential``: a model that has learned from the mechanism), and words may have moved.
        prior: p(x), float64 [V]; by default :func:`~fate_llm_ext.algo.fedcot.attacks.inversion.word_prior` without
            texts.
        infiller: for ``infill``; required for it.
        seed: decides which records are attacked.

    Returns:
        As above; a share of nothing is left out.
    """
    if not config.methods:
        return {}
    prior = word_prior(vocabulary) if prior is None else prior
    sample = draw_sample(perturbed, config.words, np.random.default_rng(seed))
    figures: Dict[str, float] = {}
    if len(sample) and set(config.methods) - {"ratio"}:
        guesses, hints = _guesses(config, sample, vocabulary, mechanism, closed_form, prior, infiller, heartbeat)
        figures = _figures(sample, guesses, hints, vocabulary, prior, closed_form)
    if "ratio" in config.methods and closed_form:
        ratios = ratio_test(mechanism, lambda done, total: heartbeat())
        figures.update(ratio_largest=float(ratios.largest), ratio_delta=float(ratios.delta))
    return figures


def clear_figures(texts: int, units: int) -> Dict[str, float]:
    """Questions in clear: all is read. ``units`` words in ``texts`` records."""
    return {
        "attack_words": float(units),
        "attack_records": float(texts),
        **share("attack_success", units, units),
        **share("attack_documents", texts, texts),
        "attack_overlap": 1.0,
    }


def _guesses(
    config: AttackConfig,
    sample: Sample,
    vocabulary: Vocabulary,
    mechanism: Mechanism,
    closed_form: bool,
    prior: np.ndarray,
    infiller: Optional[Infiller],
    heartbeat: Heartbeat,
) -> Tuple[Guesses, np.ndarray]:
    """What each method guesses, and the hints of the nearest words, int32 [n, 10]."""
    seen, places, counts = different(sample.seen)
    near = nearest_words(vocabulary.vectors, seen, NEAR)[places]
    probable = posterior(mechanism, prior, seen, counts, CANDIDATES, heartbeat)
    guesses: Guesses = {}
    if "inversion" in config.methods:
        guesses["nearest"] = sample.seen
        if closed_form:
            guesses["bayes"] = probable.words[places, 0]
    if "infill" in config.methods:
        assert infiller is not None  # the caller's part
        guesses["infill"] = _between_neighbours(sample, probable, places, prior, infiller, heartbeat)
    return guesses, near


def _between_neighbours(
    sample: Sample,
    probable: Candidates,
    places: np.ndarray,
    prior: np.ndarray,
    infiller: Infiller,
    heartbeat: Heartbeat,
) -> np.ndarray:
    """For each place the candidate that explains what was seen there, and fits between what was seen around it."""
    words, likelihood = probable.words[places], probable.log_likelihood[places]
    where = (sample.records, sample.owners, sample.places)
    rough = likelihood + _mixed(infiller.scan(*where, words, heartbeat), prior[words])
    short = np.argsort(-rough, axis=1, kind="stable")[:, :SHORTLIST]
    words, likelihood = np.take_along_axis(words, short, 1), np.take_along_axis(likelihood, short, 1)
    exact = likelihood + _mixed(infiller.scores(*where, words, heartbeat), prior[words])
    guesses: np.ndarray = words[np.arange(len(words)), np.argmax(exact, axis=1)]
    return guesses


def _mixed(fits: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Log of half the language model's probability among the candidates and half the prior's, float64 [n, K].

    The neighbours are not the true ones, so a language model is often sure of something wrong.
    """
    half = np.log(prior / prior.sum(axis=1, keepdims=True))
    mixed: np.ndarray = np.logaddexp(log_softmax(fits, axis=1), half) - np.log(2.0)
    return mixed


def _figures(
    sample: Sample,
    guesses: Guesses,
    hints: np.ndarray,
    vocabulary: Vocabulary,
    prior: np.ndarray,
    closed_form: bool,
) -> Dict[str, float]:
    known, unknown = sample.known, len(sample) - sample.known
    right = {name: right_guesses(sample, guess) for name, guess in guesses.items()}
    figures = {
        "attack_words": float(known),
        "attack_unknown": float(unknown),
        "attack_records": float(len(sample.records)),
    }
    for name, found in right.items():
        figures.update(share(f"attack_{name}", int(found.sum()), known))
    if "nearest" in guesses:
        hinted = (sample.true >= 0) & (hints == sample.true[:, None]).any(axis=1)
        figures.update(share("attack_nearest_10", int(hinted.sum()), known))
    figures.update(share("attack_prior", int((sample.true == np.argmax(prior)).sum()), known))
    best = max(right, key=lambda name: int(right[name].sum()))
    hits = int(right[best].sum())
    if "nearest" in guesses and not closed_form:
        own, base = words_that_occur(sample), words_that_occur(sample, 1)
        figures.update(share("attack_bag", own, known), **share("attack_bag_prior", base, known))
        hits = max(hits, own - base)
    figures.update(share("attack_success", hits, known))
    names: List[int] = [unknown_guesses(sample, guess, vocabulary.words) for guess in guesses.values()]
    figures.update(share("attack_unknown_success", max(names), unknown))
    figures.update(record_figures(sample, right[best], guesses[best], vocabulary.words))
    return figures

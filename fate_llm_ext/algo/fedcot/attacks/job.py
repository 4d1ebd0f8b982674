"""The attacks that a job asks for, on what a client of it has sent."""

from __future__ import annotations

from typing import Dict, List, Sequence

import numpy as np

from fate_llm_ext.algo.fedcot.attacks.copies import copy_figures
from fate_llm_ext.algo.fedcot.attacks.infill import Infiller, check_infiller, load_infiller
from fate_llm_ext.algo.fedcot.attacks.inversion import word_prior
from fate_llm_ext.algo.fedcot.attacks.measure import attack_words, clear_figures
from fate_llm_ext.algo.fedcot.config import AttackConfig
from fate_llm_ext.algo.fedcot.perturbation.words import split
from fate_llm_ext.algo.fedcot.strategies import Asked, FedCoTParty, Strategy, public_texts
from fate_llm_ext.algo.fedcot.student import RationaleModel
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.site import Site

DOING = "attacking the questions"

_ATTACKING = 5  # salt of a seed


def attack(
    config: AttackConfig,
    name: str,
    asked: Asked,
    strategy: Strategy,
    party: FedCoTParty,
    held_out: Sequence[Dict[str, str]] = (),
) -> Dict[str, float]:
    """Figures of all attacks on the questions; see :mod:`~fate_llm_ext.algo.fedcot.attacks.measure`.

    Words that were replaced one by one are guessed; of questions in clear all is read; and texts of a DP generator are
    searched for runs of words of the private records (:mod:`~fate_llm_ext.algo.fedcot.attacks.copies`).

    Args:
        name: of the strategy.
        asked: the questions that have left.
        held_out: allow-listed fields of records that no generator has read, for comparison.

    Returns:
        ``attack_*`` and ``ratio_*``, shares in [0, 1] and counts; ``ratio_largest`` may be infinite. What cannot be
        said (a share of nothing) is left out.

    Raises:
        ExtensionError: E758, E759 the model for ``infill`` is none; E402, E403, E110, E111 it cannot be loaded.
    """
    saying = party.saying(DOING)

    def heartbeat() -> None:
        saying("")

    attacked = set(config.methods) - {"ratio"}
    if asked.perturbed is not None and strategy.vocabulary is not None and strategy.mechanism is not None:
        return attack_words(
            config,
            asked.perturbed,
            strategy.vocabulary,
            strategy.mechanism,
            closed_form=name != "adaptive_exponential",
            prior=word_prior(strategy.vocabulary, public_texts(party)),
            infiller=_infiller(config, strategy, party) if "infill" in attacked else None,
            seed=derived_seed(party.config.seed, _ATTACKING),
            heartbeat=heartbeat,
        )
    private = _chosen(strategy, config.words, derived_seed(party.config.seed, _ATTACKING))
    if not attacked or not private:
        return {}
    if name == "none":
        return clear_figures(len(private), sum(len(split(text)) for text in private))
    base = _texts(held_out)[: len(private)]
    return copy_figures(private, asked.prompts, base, heartbeat)


def check_attack(config: AttackConfig, student: RationaleModel, site: Site) -> None:
    """What would stop the attacks, before anything is spent.

    Raises:
        ExtensionError: E758 the student cannot guess words between others, and no other model is named; E110, E111 the
            site does not know the model that is.
    """
    if "infill" not in config.methods:
        return
    if config.model is None:
        check_infiller(student.network)
    else:
        site.lookup("models", config.model.name)


def _infiller(config: AttackConfig, strategy: Strategy, party: FedCoTParty) -> Infiller:
    """The model that the job names, by default the student's untrained base."""
    assert strategy.vocabulary is not None  # the caller has looked
    words = strategy.vocabulary.words
    if config.model is not None:
        return load_infiller(party.site.lookup("models", config.model.name), config.model, party.device, words)
    student = strategy.scene.student
    student.restore()
    return Infiller(student.network, student.tokenizer, words)


def _chosen(strategy: Strategy, most: int, seed: int) -> List[str]:
    """Private records in random order until ``most`` words are together."""
    texts = _texts(strategy.scene.records.fields)
    found: List[str] = []
    for index in np.random.default_rng(seed).permutation(len(texts)):
        if most <= 0:
            break
        found.append(texts[index])
        most -= len(split(texts[index]))
    return found


def _texts(records: Sequence[Dict[str, str]]) -> List[str]:
    return [" ".join(fields.values()) for fields in records]

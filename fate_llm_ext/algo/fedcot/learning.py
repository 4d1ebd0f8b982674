"""What a client in FedCoT does by itself once its rationales are there: the SLM learns, is judged, and is attacked.

The models have read the private records and are not differentially private; they stay where they are.

``fedcot``      label and rationale, L = (1-α) L_label + α L_rationale; with strategy ``none`` this is Distilling
                step-by-step on an LLM that read the prompts, and is called ``distilling``.
``standalone``  the label alone: no other party is needed.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, List, Sequence

from fate_llm_ext.algo.fedcot.attacks import attack
from fate_llm_ext.algo.fedcot.client import Client
from fate_llm_ext.algo.fedcot.strategies import FedCoTParty
from fate_llm_ext.algo.fedcot.student import Pair
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.session import untold

TRAINING = "training the model"

_LEARNING = 3  # salt of a seed


class Learning:
    """Trains one SLM again and again, each time from the same start."""

    def __init__(self, party: FedCoTParty, client: Client) -> None:
        self._party = party
        self._client = client
        self.arm = "distilling" if party.config.perturbation.strategy == "none" else "fedcot"
        self.attacked: Dict[str, float] = {}

    def asked(self) -> List[Callable[[], None]]:
        """The comparisons that the job asks for; none needs another."""
        known = {"standalone": self.standalone}
        return [known[name] for name in known if name in self._party.config.compare]

    def method(self) -> None:
        """Labels and rationales; it is to run last of those whose model is kept."""
        self._learn(self.arm, self._client.rationales, self.attacked)

    def standalone(self) -> None:
        """Labels alone."""
        self._learn("standalone", [], {"attack_success": 0.0} if self.attacked else {})

    def attack(self) -> None:
        """What an attacker reads in the questions, for this party's eyes."""
        config, client = self._party.config, self._client
        settings = config.attack
        if config.perturbation.strategy == "exponential" and "ratio" not in settings.methods:
            settings = settings.copy(update={"methods": [*settings.methods, "ratio"]})  # no report without that figure
        if not settings.methods or client.asked is None:
            return
        self._party.phase(self.arm, "attacking the questions")
        with untold():
            self.attacked = attack(
                settings,
                config.perturbation.strategy,
                client.asked,
                client.strategy,
                self._party,
                held_out=client.judged.fields,
            )
        for name, value in self.attacked.items():
            if math.isfinite(value):  # a curve has no place for infinity; the statement has
                self._party.metrics.log(self.arm, 0, name, value)

    def _learn(self, arm: str, rationales: Sequence[Pair], more: Dict[str, float]) -> None:
        """From the first weights: the records, and ``rationales``."""
        party, student = self._party, self._client.student
        party.phase(arm, TRAINING)
        student.restore()
        seed = derived_seed(party.config.seed, _LEARNING)
        for name, value in student.train(self._client.records.examples, rationales, seed=seed, phase=TRAINING).items():
            party.metrics.log(arm, 0, name, value)
        rows = party.config.evaluation.max_rows
        judged = self._client.judged.examples[:rows]
        if judged:
            party.phase(arm, "evaluation")
            values = student.evaluate(judged)
            for name, value in values.items():
                party.metrics.log(arm, 0, name, value)
            success = {name: value for name, value in more.items() if name == "attack_success"}
            party.metrics.results(arm, {**values, **success})

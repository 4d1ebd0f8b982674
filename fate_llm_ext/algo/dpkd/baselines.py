"""What an owner compares DP-KD with, on its own records. Nothing of it leaves the party, so nothing is charged.

They run once the task has ended for the others: how long they take, and whether they fail, nobody else sees.

``dp_sgd_student``  the student itself trained by DP-SGD with the whole ε.
``dpkd``            a teacher by DP-SGD, then the student by DP-SGD with the teacher's distributions on the private
                    texts; both with the noise at which their *composition* costs ε (DPKD, arXiv 2009.01900).
``non_private``     DP-KD with a teacher trained without noise and clipping: what the noise costs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, List, cast

import numpy as np

from fate_llm_ext.algo.control import items
from fate_llm_ext.algo.dpkd.owner import TRAINING, Owner
from fate_llm_ext.algo.dpkd.party import DPKDParty
from fate_llm_ext.algo.dpkd.pupil import Pupil, local_targets
from fate_llm_ext.algo.dpkd.student import distillation_items
from fate_llm_ext.algo.synthesis import code_counts
from fate_llm_ext.models.vocabulary import read_vocabulary
from fate_llm_ext.privacy.dp_training import DPPlan, plan_training

_STUDYING = "training the student"


class Baselines:
    """The comparisons of one owner, each from untrained models.

    Args:
        owner: records and base model of the teacher; its weights are left as the last comparison has made them.
        pupil: the student, likewise.
    """

    def __init__(self, party: DPKDParty, owner: Owner, pupil: Pupil) -> None:
        self._party = party
        self._owner = owner
        self._pupil = pupil

    def asked(self) -> List[Callable[[], None]]:
        """Those that the job asks for; none needs another."""
        known = {"dp_sgd_student": self.dp_sgd_student, "dpkd": self.dpkd, "non_private": self.non_private}
        return [comparison for name, comparison in known.items() if name in self._party.config.compare]

    def dp_sgd_student(self) -> None:
        """DP-SGD of the student with the whole ε; no histogram is needed, so none shares it."""
        party, pupil = self._party, self._pupil
        party.phase("dp_sgd_student", _STUDYING)
        plan = plan_training(party.config.privacy, self._owner.data.records)
        pupil.model.restore()
        own = items(pupil.model.encode(self._owner.records))
        loss = self._owner.trainer(pupil.model, plan, own, _STUDYING).run(plan.steps)
        party.log_loss("dp_sgd_student", loss)
        pupil.judge("dp_sgd_student")

    def dpkd(self) -> None:
        """DP-SGD of the teacher, then of the student with the teacher's help."""
        party, owner, pupil = self._party, self._owner, self._pupil
        plan = half_plan(plan_training(party.config.privacy, owner.data.records))
        party.phase("dpkd", TRAINING)
        owner.teacher.restore()
        owner.trainer(owner.teacher, plan, owner.private).run(plan.steps)
        table = pupil.translate_to(read_vocabulary(owner.teacher.tokenizer))
        known = local_targets(party, owner.teacher, pupil, owner.records, table, "scoring the records")
        party.phase("dpkd", _STUDYING)
        pupil.model.restore()
        work = distillation_items(pupil.model.encode(owner.records), known, party.config.distill.soft_weight)
        loss = owner.trainer(pupil.model, plan, work, _STUDYING).run(plan.steps)
        party.log_loss("dpkd", loss)
        pupil.judge("dpkd")

    def non_private(self) -> None:
        """The method with a teacher that was trained on as many samples, without clipping and noise."""
        party, owner, pupil = self._party, self._owner, self._pupil
        party.phase("non_private", TRAINING)
        plan = dataclasses.replace(owner.plan, noise_multiplier=0.0, max_grad_norm=math.inf)
        owner.teacher.restore()
        owner.trainer(owner.teacher, plan, owner.private).run(plan.steps)
        config = party.config
        codes = len(config.control.values)
        shares = None
        if config.control.frequencies == "histogram":
            shares = np.bincount(owner.records.codes, minlength=codes)
        counts = code_counts(config.synthesis.samples, shares, codes)
        records = owner.sample(owner.teacher, counts, "non_private")
        table = pupil.translate_to(read_vocabulary(owner.teacher.tokenizer))
        known = local_targets(party, owner.teacher, pupil, records, table, "scoring texts")
        hidden = owner.teacher if config.distill.hidden_weight > 0 else None
        pupil.learn("non_private", records, known, hidden)


def half_plan(plan: DPPlan) -> DPPlan:
    """The plan of each of two runs of ``plan.steps`` steps that together cost what ``plan`` costs alone.

    Two runs at one sampling rate and noise are, for the accountant, one of twice the steps.
    """
    from fate_llm_ext.privacy import accountants

    noise = accountants.noise_multiplier(
        plan.epsilon, plan.delta, plan.sampling_rate, 2 * plan.steps, cast("accountants.Accountant", plan.accountant)
    )
    return dataclasses.replace(plan, noise_multiplier=noise)

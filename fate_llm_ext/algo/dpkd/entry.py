"""What the `dpkd` component runs: one party's whole task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from fate_llm_ext import __version__
from fate_llm_ext.algo import private
from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.dpkd.arbiter import Arbiter
from fate_llm_ext.algo.dpkd.baselines import Baselines
from fate_llm_ext.algo.dpkd.checks import compares, role_problems, trains_student
from fate_llm_ext.algo.dpkd.config import DPKDConfig
from fate_llm_ext.algo.dpkd.owner import Owner
from fate_llm_ext.algo.dpkd.party import DPKDParty, load, public_test
from fate_llm_ext.algo.dpkd.pupil import Pupil, judge, local_targets
from fate_llm_ext.algo.dpkd.student import check_hidden
from fate_llm_ext.algo.party import this_party
from fate_llm_ext.algo.session import federated_task
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.models.vocabulary import read_vocabulary
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.report import Artefact
from fate_llm_ext.progress import emit

_POST_PROCESSING = "computed from the DP teacher, its texts and public data alone"


def run_train(
    ctx: Any, role: Any, parameters: Dict[str, Any], train_data: Any, output_model: Any, synthetic_data: Any
) -> None:
    """The train stage of one party.

    Args:
        ctx: FATE's context.
        role: FATE's role.
        parameters: fields of :class:`DPKDConfig` that the job gives.
        train_data: reader of the private table (guest and hosts).
        output_model: writer of the model directory.
        synthetic_data: writer of the directory with the texts.
    """
    config = DPKDConfig(**parameters)
    comparisons: List[Callable[[], None]] = []
    with federated_task(ctx, config.network, comparisons) as channel:
        emit("phase", arm="", round=0, phase="loading")
        channel.heartbeat("loading")
        for problem in role_problems(config, role.name):
            raise problem
        party = this_party(ctx, config, role.name, channel)
        outputs = _Outputs(party, output_model, synthetic_data)
        if role.is_arbiter:
            _run_arbiter(party, outputs)
        else:
            comparisons += _run_owner(party, outputs, train_data)


def _run_arbiter(party: DPKDParty, outputs: _Outputs) -> None:
    arbiter = Arbiter(party)
    arbiter.agree()
    arbiter.average()
    arbiter.study()
    party.log_traffic("dp_kd", arbiter.mean)
    epsilon, delta = (report.show_epsilon(arbiter.guarantee[0]), report.show_delta(arbiter.guarantee[1]))
    why = (
        f"{_POST_PROCESSING}; (ε, δ) = ({epsilon}, {delta}) or better for the records of each owner, as the owners "
        "say; a record that stands at several owners pays at each of them"
    )
    artefacts = [Artefact(name, True, why) for name in ("student", "synthetic texts") if arbiter.pupil is not None]
    said = report.statement(party.name, "dpkd", artefacts=artefacts)
    if arbiter.pupil is not None:
        outputs.model(arbiter.pupil.model, "student", said)
    else:
        outputs.card_only(said)
    outputs.texts(arbiter.records)
    report.publish(said)


def _run_owner(party: DPKDParty, outputs: _Outputs, train_data: Any) -> List[Callable[[], None]]:
    """All that has to do with the others, and the outputs; returns the comparisons that are the owner's alone."""
    config = party.config
    owner = Owner(party, train_data)
    pupil = None
    if trains_student(config, party.role) or compares(config, party.role):
        student = load("student", party)
        pupil = Pupil(party, student, public_test(party))
        if config.distill.hidden_weight > 0:
            check_hidden(student.network, student.tokenizer, owner.teacher.network, owner.teacher.tokenizer)
    owner.agree()
    owner.charge()
    owner.train()
    if pupil is not None:
        judge(party, owner.teacher, pupil.test, "dp_teacher")
    records = owner.write()
    if config.student_at == "arbiter":
        owner.send(records)
        if party.role == "guest":
            owner.answer()
    party.log_traffic("dp_kd", owner.mean)
    said = _statement(party, owner, pupil is not None)
    outputs.texts(records)
    if pupil is not None and trains_student(config, party.role):
        _study(party, owner, pupil, records)
        outputs.model(pupil.model, "student", said)
        outputs.model(owner.teacher, "DP teacher", said, "teacher")
    else:
        outputs.model(owner.teacher, "DP teacher", said)
    report.publish(said)
    return Baselines(party, owner, pupil).asked() if pupil is not None and compares(config, party.role) else []


def _study(party: DPKDParty, owner: Owner, pupil: Pupil, records: Records) -> None:
    """Train the student at the guest, beside the teacher."""
    config, teacher = party.config, owner.teacher
    hidden = teacher if config.distill.hidden_weight > 0 else None
    table = pupil.translate_to(read_vocabulary(teacher.tokenizer))
    if "synthetic_ce" in config.compare:
        pupil.learn_texts("synthetic_ce", records)
    pupil.learn("dp_kd", records, local_targets(party, teacher, pupil, records, table, "scoring texts"), hidden)
    if config.distill.on_policy_rounds:
        pupil.learn_on_policy(
            lambda written, round: local_targets(party, teacher, pupil, written, table, "scoring texts"), hidden
        )


def _statement(party: DPKDParty, owner: Owner, judges: bool) -> Dict[str, Any]:
    config = party.config
    artefacts = [
        Artefact("DP teacher", True, "trained by this DP-SGD; that of the other owners covers their records"),
        Artefact("synthetic texts", True, "sampled from the DP teacher"),
    ]
    if trains_student(config, party.role):
        artefacts.append(Artefact("student", True, _POST_PROCESSING))
    asked = [name for name in ("dp_sgd_student", "dpkd", "non_private") if name in config.compare]
    if asked and compares(config, party.role):
        why = "computed from private records for comparison, kept at this party, not released and not charged"
        artefacts.append(Artefact(f"results of {', '.join(asked)}", False, why))
    artefacts.append(Artefact("private training loss", False, "a mean over private records; it stays at this party"))
    public: Sequence[str] = ("the list of control codes", *(("the public set",) if judges else ()))
    return private.statement(
        party.name,
        owner.data,
        owner.planned,
        owner.spending,
        clipping=owner.clipping,
        public=public,
        artefacts=artefacts,
    )


class _Outputs:
    """The task's model and data outputs; every role gives both, because FATE Flow waits for them."""

    def __init__(self, party: DPKDParty, model: Any, texts: Any) -> None:
        self._party = party
        self._model = model
        self._texts = texts

    def model(self, model: Model, what: str, said: Dict[str, Any], subfolder: str = "") -> None:
        """Write a model with its card."""
        folder = Path(self._model.get_directory()) / subfolder
        model.save(folder, self._card(what, said, model))
        report.save(said, folder)
        if not subfolder:
            facts = {"algorithm": "dpkd", "version": __version__, "base_model": model.name, "model": what}
            self._model.write_metadata({**facts, "weights": model.weights})

    def card_only(self, said: Dict[str, Any]) -> None:
        """Nothing is kept here but what there is to say."""
        folder = Path(self._model.get_directory())
        (folder / "README.md").write_text(self._card("No model", said, None), encoding="utf-8")
        report.save(said, folder)
        self._model.write_metadata({"algorithm": "dpkd", "version": __version__, "model": "none"})

    def texts(self, records: Records) -> None:
        """Write the texts as ``train.jsonl`` with the columns ``code`` and ``text``, if there are any."""
        folder = Path(self._texts.get_directory())
        values = self._party.config.control.values
        if len(records):
            rows = [{"code": values[code], "text": text} for code, text in zip(records.codes.tolist(), records.texts)]
            write_jsonl(folder / "train.jsonl", rows)
        # Without a name of its own FATE would give one party's directory to another.
        name = f"synthetic_{self._party.name.replace(' ', '_')}_{self._party.job}"
        self._texts.write_metadata({"rows": len(records)}, name=name, namespace="fate_llm_ext")

    def _card(self, what: str, said: Dict[str, Any], model: Any) -> str:
        config = self._party.config
        base = "" if model is None else f", {model.weights} weights of the base model `{model.name}`"
        return (
            "---\ntags: [dp-kd, differential-privacy, federated-learning]\n---\n\n"
            f"# DP-KD: {what} ({self._party.role})\n\n"
            f"{what}{base}, made by fate-llm-ext {__version__} with DP-KD (arXiv 2403.00932): a teacher trained by "
            "DP-SGD writes texts, a student learns from them and from the teacher's distributions over them. Seed "
            f"{config.seed} (noise and sampling of records come from the operating system's entropy).\n\n"
            + report.card(said)
        )

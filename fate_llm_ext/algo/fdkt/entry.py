"""What the `fdkt` component runs: one party's whole task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

from fate_llm_ext import __version__
from fate_llm_ext.algo import private
from fate_llm_ext.algo.fdkt.arbiter import Arbiter
from fate_llm_ext.algo.fdkt.checks import role_problems
from fate_llm_ext.algo.fdkt.client import Client, FDKTParty
from fate_llm_ext.algo.fdkt.config import FDKTConfig
from fate_llm_ext.algo.fdkt.generator import save_generator
from fate_llm_ext.algo.fdkt.learning import Learning
from fate_llm_ext.algo.fdkt.student import TaskModel
from fate_llm_ext.algo.party import this_party
from fate_llm_ext.algo.session import federated_task
from fate_llm_ext.data.datasets import write_jsonl
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.report import Artefact
from fate_llm_ext.progress import emit

_POST_PROCESSING = "computed from the DP generator's texts and a model that has not read the records"


def run_train(
    ctx: Any,
    role: Any,
    parameters: Dict[str, Any],
    train_data: Any,
    output_model: Any,
    generator_model: Any,
    augmented_data: Any,
) -> None:
    """The train stage of one party.

    Args:
        ctx: FATE's context.
        role: FATE's role.
        parameters: fields of :class:`FDKTConfig` that the job gives.
        train_data: reader of the private table (guest and hosts).
        output_model: writer of the task model's directory.
        generator_model: writer of the generator's directory.
        augmented_data: writer of the directory with the texts.
    """
    config = FDKTConfig(**parameters)
    own: List[Callable[[], None]] = []
    later: List[Callable[[], None]] = []
    with federated_task(ctx, config.network, later, own) as channel:
        emit("phase", arm="", round=0, phase="loading")
        channel.heartbeat("loading")
        for problem in role_problems(config, role.name):
            raise problem
        party = this_party(ctx, config, role.name, channel)
        outputs = _Outputs(party, output_model, generator_model, augmented_data)
        if role.is_arbiter:
            _run_arbiter(party, outputs)
        else:
            finished, comparisons = _run_client(party, outputs, train_data)
            own.append(finished)
            later += comparisons


def _run_arbiter(party: FDKTParty, outputs: _Outputs) -> None:
    arbiter = Arbiter(party)
    arbiter.agree()
    arbiter.serve()
    party.log_traffic("fdkt")
    said = report.statement(party.name, "fdkt")
    outputs.nothing(said)
    report.publish(said)


def _run_client(
    party: FDKTParty, outputs: _Outputs, train_data: Any
) -> tuple[Callable[[], None], List[Callable[[], None]]]:
    """All that has to do with the arbiter; returns what is left to do here, and the comparisons."""
    client = Client(party, train_data)
    settings = party.config.student
    assert settings is not None  # role_problems
    folder = party.site.lookup("models", settings.name)
    student = TaskModel(folder, settings, party.config, party.device, party.channel.heartbeat)
    client.agree()
    client.charge()
    client.train()
    said = _statement(party, client)
    report.publish(said)
    outputs.generator(client, said)  # it is paid for, whatever becomes of the rest
    client.write()
    outputs.texts(client)
    client.exchange()
    party.log_traffic("fdkt")
    learning = Learning(party, client, student)

    def finish() -> None:
        outputs.texts(client)
        _say_what_is_missing(party, client)
        learning.fdkt()
        outputs.student(student, said)

    return finish, learning.asked()


def _say_what_is_missing(party: FDKTParty, client: Client) -> None:
    """A warning where the LLM returned fewer texts than were asked for; with none the model is a local one."""
    asked = party.config.augmentation.samples * (1 + party.config.feedback.rounds)
    if client.note:
        got = len(client.augmented)
        error = ExtensionError("E740" if got < asked else "E741", got=got, asked=asked, note=client.note)
        emit("warning", code=error.code, message=str(error))


def _statement(party: FDKTParty, client: Client) -> Dict[str, Any]:
    config = party.config
    artefacts = [
        Artefact("DP generator", True, "trained by this DP-SGD"),
        Artefact("synthetic texts", True, "sampled from the DP generator"),
        Artefact("augmented texts", True, _POST_PROCESSING + (", and noisy votes" if config.feedback.rounds else "")),
    ]
    if not client.planned.release.private:
        artefacts = [
            Artefact(one.name.replace("DP ", ""), False, "the generator was trained without noise") for one in artefacts
        ]
    artefacts += [
        Artefact("task model", False, "trained on the private records themselves; it stays at this party"),
        Artefact("results and measurements", False, "computed from private records; they stay at this party"),
        Artefact("private training loss", False, "a mean over private records; it stays at this party"),
    ]
    return private.statement(
        party.name,
        client.data,
        client.planned,
        client.spending,
        clipping=client.clipping,
        public=("the list of labels", "the description of the texts"),
        artefacts=artefacts,
    )


class _Outputs:
    """The task's model and data outputs; every role gives all, because FATE Flow waits for them."""

    def __init__(self, party: FDKTParty, model: Any, generator: Any, texts: Any) -> None:
        self._party = party
        self._model = model
        self._generator = generator
        self._texts = texts

    def student(self, student: TaskModel, said: Dict[str, Any]) -> None:
        """Write the task model."""
        config = self._party.config
        assert config.student is not None
        what = f"Task model, {config.head} head, {config.student_weights} weights of `{config.student.name}`"
        first = (
            "**This model is not differentially private**: it has read the private records themselves. Keep it at its "
            "party. What is said on privacy below is about what has left the party.\n\n"
        )
        student.save(Path(self._model.get_directory()), self._card(what, said, first), said)
        self._model.write_metadata({**self._facts(), "base_model": config.student.name, "model": "task model"})

    def generator(self, client: Client, said: Dict[str, Any]) -> None:
        """Write the DP generator, for other components to sample from."""
        config = self._party.config
        assert config.generator is not None
        what = f"Generator, {config.generator_weights} weights of `{config.generator.name}`"
        private_tag = ", differential-privacy" if client.planned.release.private else ""
        card = self._card(what, said, tags=f"fdkt, federated-learning{private_tag}")
        client.generator.save(Path(self._generator.get_directory()), card)
        save_generator(client.generator, config.control, config.synthesis, said, Path(self._generator.get_directory()))
        self._generator.write_metadata({**self._facts(), "base_model": config.generator.name, "model": "generator"})

    def texts(self, client: Client) -> None:
        """Write all texts as ``train.jsonl`` with the columns ``label``, ``text``, ``source`` and ``demonstration``."""
        values = self._party.config.control.values
        rows: List[Dict[str, Any]] = []
        marks = [False] * (len(client.synthetic) + len(client.augmented))
        marks[: len(client.kept)] = client.kept.tolist()
        for source, records in (("synthetic", client.synthetic), ("augmented", client.augmented)):
            rows += [
                {"label": values[code], "text": text, "source": source}
                for code, text in zip(records.codes.tolist(), records.texts)
            ]
        if rows:
            marked = [{**row, "demonstration": mark} for row, mark in zip(rows, marks)]
            write_jsonl(Path(self._texts.get_directory()) / "train.jsonl", marked)
        self._name_texts(len(rows))

    def nothing(self, said: Dict[str, Any]) -> None:
        """The arbiter keeps nothing but what there is to say."""
        for writer in (self._model, self._generator):
            folder = Path(writer.get_directory())
            (folder / "README.md").write_text(self._card("No model", said), encoding="utf-8")
            report.save(said, folder)
            writer.write_metadata({**self._facts(), "model": "none"})
        self._texts.get_directory()
        self._name_texts(0)

    def _name_texts(self, rows: int) -> None:
        # Without a name of its own FATE would give one party's directory to another.
        name = f"augmented_{self._party.name.replace(' ', '_')}_{self._party.job}"
        self._texts.write_metadata({"rows": rows}, name=name, namespace="fate_llm_ext")

    def _facts(self) -> Dict[str, Any]:
        return {"algorithm": "fdkt", "version": __version__}

    def _card(self, what: str, said: Dict[str, Any], first: str = "", tags: str = "fdkt, federated-learning") -> str:
        return (
            f"---\ntags: [{tags}]\n---\n\n"
            f"# FDKT: {what} ({self._party.role})\n\n{first}"
            f"Made by fate-llm-ext {__version__} with FDKT (arXiv 2405.14212): a generator trained on private records "
            "by DP-SGD (see below with which noise) writes labelled texts, another party's LLM writes more after them, "
            f"a task model learns from these and from the private records. Seed {self._party.config.seed} (noise and "
            "sampling of records come from the operating system's entropy).\n\n" + report.card(said)
        )

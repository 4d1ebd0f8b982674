"""What the `fedcot` component runs: one party's whole task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from fate_llm_ext import __version__
from fate_llm_ext.algo import private
from fate_llm_ext.algo.fedcot.arbiter import Arbiter
from fate_llm_ext.algo.fedcot.checks import role_problems
from fate_llm_ext.algo.fedcot.client import Client
from fate_llm_ext.algo.fedcot.config import WORD_BY_WORD, FedCoTConfig
from fate_llm_ext.algo.fedcot.guarantees import guarantee_text, not_covered, public_facts
from fate_llm_ext.algo.fedcot.inputs import input_problems
from fate_llm_ext.algo.fedcot.learning import Learning
from fate_llm_ext.algo.fedcot.release import WHAT
from fate_llm_ext.algo.fedcot.strategies import FedCoTParty
from fate_llm_ext.algo.party import this_party
from fate_llm_ext.algo.session import federated_task
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.report import Artefact
from fate_llm_ext.progress import emit


def run_train(
    ctx: Any, role: Any, parameters: Dict[str, Any], train_data: Any, generator: Any, output_model: Any
) -> None:
    """The train stage of one party.

    Args:
        ctx: FATE's context.
        role: FATE's role.
        parameters: fields of :class:`FedCoTConfig` that the job gives.
        train_data: reader of the private table (guest and hosts).
        generator: reader of a DP generator's directory, or None (guest and hosts).
        output_model: writer of the SLM's directory.
    """
    config = FedCoTConfig(**parameters)
    own: List[Callable[[], None]] = []
    later: List[Callable[[], None]] = []
    with federated_task(ctx, config.network, later, own) as channel:
        emit("phase", arm="", round=0, phase="loading")
        channel.heartbeat("loading")
        inputs = [] if generator is None else ["generator"]
        for problem in [*role_problems(config, role.name), *input_problems(config, role.name, inputs)]:
            raise problem
        party = this_party(ctx, config, role.name, channel)
        output = _Output(party, output_model)
        if role.is_arbiter:
            own.append(_run_arbiter(party, output))
        else:
            folder = None if generator is None else Path(generator.get_directory())
            finished, comparisons = _run_client(party, output, train_data, folder)
            own.append(finished)
            later += comparisons


def _run_arbiter(party: FedCoTParty, output: _Output) -> Callable[[], None]:
    """The arbiter's task; returns what is left to say when all clients have said goodbye."""
    arbiter = Arbiter(party)
    arbiter.agree()
    arbiter.serve()
    party.log_traffic("fedcot")
    said = report.statement(party.name, "fedcot")
    output.nothing(said)
    report.publish(said)
    return arbiter.say_who_is_lost


def _run_client(
    party: FedCoTParty, output: _Output, train_data: Any, generator: Optional[Path]
) -> tuple[Callable[[], None], List[Callable[[], None]]]:
    """All that has to do with the arbiter; returns what is left to do here, and the comparisons."""
    client = Client(party, train_data, generator)
    client.agree()
    client.learn()
    client.charge()
    report.publish(_statement(party, client, {}))
    client.ask()
    client.receive()
    party.log_traffic("fedcot")
    learning = Learning(party, client)

    def finish() -> None:
        client.decode()
        _say_what_is_missing(client)
        try:
            learning.attack()
        except ExtensionError as error:  # the questions are paid for, and the model can do without these figures
            _warn(error)
        said = _statement(party, client, learning.attacked)
        report.publish(said)
        learning.method()
        output.student(client, said)

    return finish, learning.asked()


def _say_what_is_missing(client: Client) -> None:
    """A warning where rationales are missing; without any the SLM has learned from labels alone."""
    if client.note:
        _warn(ExtensionError("E789", got=client.received, asked=client.questions, note=client.note))
    if client.received and not client.rationales:
        told = ", ".join(f"{reason}: {count}" for reason, count in client.dropped.items() if count)
        _warn(ExtensionError("E790", got=client.received, dropped=told))


def _warn(error: ExtensionError) -> None:
    emit("warning", code=error.code, message=str(error))


def _statement(party: FedCoTParty, client: Client, attacked: Dict[str, float]) -> Dict[str, Any]:
    config = party.config
    covered = client.planned.release.private
    why = "what the strategy made of private prompts" if covered else "computed from private prompts"
    how = config.perturbation
    return private.statement(
        party.name,
        client.data,
        client.planned,
        client.spending,
        public=public_facts(config),
        artefacts=[
            Artefact("questions", covered, why),
            Artefact("rationales as they came", covered, "the LLM's texts after the questions"),
            Artefact("decoded rationales", False, "decoded with the private prompts; they stay at this party"),
            Artefact("model", False, "trained on the private records themselves; it stays at this party"),
            Artefact("results and attacks", False, "computed from private records; they stay at this party"),
        ],
        not_covered=not_covered(config),
        perturbation={"strategy": how.strategy, "epsilon": how.epsilon},
        notes=guarantee_text(config, client.generator, attacked.get("ratio_largest")),
        audit=attacked or None,
    )


class _Output:
    """The task's model output; every role gives one, because FATE Flow waits for it."""

    def __init__(self, party: FedCoTParty, model: Any) -> None:
        self._party = party
        self._model = model

    def student(self, client: Client, said: Dict[str, Any]) -> None:
        """Write the SLM."""
        config = self._party.config
        assert config.student is not None
        what = f"SLM, {config.student_weights} weights of `{config.student.name}`"
        first = (
            "**This model is not differentially private**: it has read the private records themselves. Keep it at its "
            "party. What is said on privacy below is about what has left the party.\n\n"
        )
        client.student.save(Path(self._model.get_directory()), self._card(what, said, first), said)
        self._model.write_metadata({**self._facts(), "base_model": config.student.name, "model": "SLM"})

    def nothing(self, said: Dict[str, Any]) -> None:
        """The arbiter keeps nothing but what there is to say."""
        folder = Path(self._model.get_directory())
        (folder / "README.md").write_text(self._card("No model", said), encoding="utf-8")
        report.save(said, folder)
        self._model.write_metadata({**self._facts(), "model": "none"})

    def _facts(self) -> Dict[str, Any]:
        return {"algorithm": "fedcot", "version": __version__}

    def _card(self, what: str, said: Dict[str, Any], first: str = "") -> str:
        config, strategy = self._party.config, self._party.config.perturbation.strategy
        asked = f"{WHAT[strategy]}, strategy `{strategy}`"
        if self._party.role == "arbiter":  # each client has a strategy of its own
            asked = "what its clients ask in place of their prompts"
        chance = " (the perturbation comes from the operating system's entropy)" if strategy in WORD_BY_WORD else ""
        return (
            "---\ntags: [fedcot, federated-learning]\n---\n\n"
            f"# FedCoT: {what} ({self._party.role})\n\n{first}"
            f"Made by fate-llm-ext {__version__} with FedCoT (arXiv 2406.12403): another party's LLM gives rationales "
            f"for {asked}; a small model learns labels and rationales. Seed {config.seed}{chance}.\n\n"
            + report.card(said)
        )

"""What the `fedcot` component runs after training: the SLM answers, each client for itself; no LLM is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

from fate_llm_ext.algo.facts import difference
from fate_llm_ext.algo.fedcot.answers import Reasoner
from fate_llm_ext.algo.fedcot.checks import predict_problems
from fate_llm_ext.algo.fedcot.config import PredictConfig
from fate_llm_ext.algo.fedcot.student import FACTS, facts
from fate_llm_ext.algo.inference import Lines, choice_lines, predict_stage
from fate_llm_ext.config import ModelConfig
from fate_llm_ext.data.datasets import has_split, named, read_rows
from fate_llm_ext.data.templates import Example, get_template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import load_base, resolve_device
from fate_llm_ext.models.lora import load_adapter
from fate_llm_ext.progress import emit
from fate_llm_ext.site import Site, current_site

_SEED = 0  # of the sampled rationales: the same model writes the same ones again


def run_predict(ctx: Any, role: Any, parameters: Dict[str, Any], test_data: Any, input_model: Any, output: Any) -> None:
    """Answer every row of the party's table; the arbiter has none and does nothing.

    Writes ``predictions.jsonl``: row number, prediction, for closed choices their probabilities, and the rationale if
    ``explain`` asks for it. It never holds the prompt.
    """

    def lines() -> Lines:
        config = PredictConfig(**parameters)
        for problem in predict_problems(config, role.name):
            raise problem
        emit("phase", arm="", round=0, phase="loading")
        site = current_site(role.name, ctx.federation.local_party[1])
        model = load_reasoner(Path(input_model.get_directory()), config, site)
        examples = read_examples(Path(test_data.get_directory()), config)
        emit("phase", arm="", round=0, phase="answering")
        return predictions(model, examples, config)

    predict_stage(ctx, role, test_data, input_model, output, lines)


def load_reasoner(
    folder: Path, config: PredictConfig, site: Site, heartbeat: Callable[[str], None] = lambda _: None
) -> Reasoner:
    """The SLM that a train stage has written to ``folder``.

    Raises:
        ExtensionError: E765 it was trained with other parameters; E766 there is none; E402 to E408, it cannot be
            loaded.
    """
    check_facts(folder, config)
    adapter = config.student_weights == "lora"
    settings = config.student or ModelConfig(name="input_model")
    base = site.lookup("models", settings.name) if adapter else folder
    network, tokenizer = load_base(
        base, settings, resolve_device(site.device), config.task.max_length, encoder_decoder=True
    )
    return Reasoner(load_adapter(network, folder) if adapter else network, tokenizer, config, heartbeat)


def check_facts(folder: Path, config: PredictConfig) -> None:
    """Whether the folder holds an SLM that was trained with these parameters.

    Raises:
        ExtensionError: E765 a parameter differs; E766 the folder holds no SLM of FedCoT.
    """
    path = folder / FACTS
    found = difference(path, facts(config), lambda reason: ExtensionError("E766", folder=folder, reason=reason))
    if found is not None:
        raise ExtensionError("E765", parameter=found.parameter, trained=found.trained, asked=found.asked)


def read_examples(table: Path, config: PredictConfig) -> List[Example]:
    """The rows of a table's test split, or all rows if it has one split only; whatever their answers, if any, are."""
    template = get_template(config.task)
    split = "test" if has_split(table, "test") else "train"
    rows = read_rows(table, split)[: config.evaluation.max_rows]
    known = {name for row in rows for name in row}
    mapped = {
        name: column
        for name, column in config.task.columns.items()
        if column in known or name not in template.answer_fields
    }
    fields = [
        template.canonical(row, number, table.name) for number, row in enumerate(named(rows, mapped, table.name), 1)
    ]
    asked = [{name: value for name, value in row.items() if name not in template.answer_fields} for row in fields]
    return list(template.examples(asked, source=table.name))


def predictions(model: Reasoner, examples: List[Example], config: PredictConfig) -> Lines:
    """Lines of the file; a rationale is sampled as ``decoding`` says, and the prediction does not depend on it."""
    if examples and examples[0].choices:
        lines = choice_lines(examples, model.log_probs(examples, "answering"))
    else:
        lines = [
            {"row": row, "prediction": text} for row, text in enumerate(model.answers(examples, "writing answers"))
        ]
    if config.explain:
        texts = model.explain(examples, config.decoding, seed=_SEED, doing="explaining")
        lines = [{**line, "rationale": text} for line, text in zip(lines, texts)]
    return lines

"""What the components run after training: predictions and evaluation, each site for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import pydantic

from fate_llm_ext.algo.answering import Answerer
from fate_llm_ext.algo.base import Metrics
from fate_llm_ext.algo.private import job_id, table_name
from fate_llm_ext.config import EvaluationConfig, Group, ModelConfig, TaskConfig
from fate_llm_ext.data.datasets import has_split, read_rows, write_jsonl
from fate_llm_ext.data.templates import Example, get_template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import load_base, resolve_device
from fate_llm_ext.models.lora import load_adapter
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.events import DataSet
from fate_llm_ext.privacy.report import Artefact
from fate_llm_ext.progress import emit
from fate_llm_ext.site import current_site

PREDICTIONS = "computed from this party's rows; it stays in this party's outputs"
METRICS = "computed from this party's rows; they stay in this party's outputs"

Lines = List[Dict[str, Any]]


class InferenceConfig(Group):
    """Parameters of prediction and evaluation."""

    task: TaskConfig
    model: ModelConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    max_new_tokens: int = pydantic.Field(
        64, ge=1, description="Length of a generated answer where there are no choices."
    )


def run_predict(ctx: Any, role: Any, parameters: Dict[str, Any], test_data: Any, input_model: Any, output: Any) -> None:
    """Answer every row of the party's table; the arbiter has none and does nothing.

    Writes ``predictions.jsonl``: row number, prediction and, for closed choices, their probabilities. It
    never holds the prompt.
    """

    def lines() -> Lines:
        config = InferenceConfig(**parameters)
        answerer, examples = _prepare(ctx, role, config, Path(test_data.get_directory()), input_model)
        return _predictions(answerer, examples, config.max_new_tokens)

    predict_stage(ctx, role, test_data, input_model, output, lines)


def predict_stage(
    ctx: Any, role: Any, test_data: Any, input_model: Any, output: Any, lines: Callable[[], Lines]
) -> None:
    """What is the same in every predict stage; the arbiter has no table and does nothing.

    Args:
        lines: makes the lines of ``predictions.jsonl``; for a client only, and before anything is written.
    """
    if role.is_arbiter:
        input_model.get_directory()
        report.publish(report.statement(f"{role.name} {ctx.federation.local_party[1]}", "predict"))
        emit("done")
        return
    predicted = lines()
    write_jsonl(Path(output.get_directory()) / "predictions.jsonl", predicted)
    # Without a name of its own FATE would give the directory of one party, or of an earlier job, to another.
    name = f"predictions_{role.name}_{ctx.federation.local_party[1]}_{job_id(ctx)}"
    output.write_metadata({"rows": len(predicted)}, name=name, namespace="fate_llm_ext")
    _state(ctx, role, "predict", test_data, len(predicted), Artefact("predictions.jsonl", False, PREDICTIONS))
    emit("done")


def run_text_evaluation(ctx: Any, role: Any, parameters: Dict[str, Any], test_data: Any, input_model: Any) -> None:
    """Log accuracy and NLL per byte on the party's test split (or on all rows, if it has one split only)."""
    config = InferenceConfig(**parameters)
    table = Path(test_data.get_directory())
    answerer, examples = _prepare(ctx, role, config, table, input_model)
    labelled = [example for example in examples if example.answer is not None]
    if not labelled:
        raise ExtensionError("E332", table=table.name, rows=len(examples))
    gold, choices = answerer.encode_gold(labelled), answerer.encode_choices(labelled)
    Metrics(ctx).results("evaluation", answerer.evaluate(labelled, gold, choices))
    _state(ctx, role, "text_evaluation", test_data, len(examples), Artefact("metrics", False, METRICS))
    emit("done")


def _state(ctx: Any, role: Any, algorithm: str, reader: Any, rows: int, artefact: Artefact) -> None:
    """Say that nothing leaves this party: what is computed lies in its own outputs, and no message is sent."""
    party = f"{role.name} {ctx.federation.local_party[1]}"
    data = DataSet(table_name(reader), "", rows)
    report.publish(report.statement(party, algorithm, data=data, artefacts=[artefact]))


def _prepare(
    ctx: Any, role: Any, config: InferenceConfig, table: Path, input_model: Optional[Any]
) -> tuple[Answerer, List[Example]]:
    emit("phase", arm="", round=0, phase="loading")
    site = current_site(role.name, ctx.federation.local_party[1])
    split = "test" if has_split(table, "test") else "train"
    rows = read_rows(table, split, config.task.columns)[: config.evaluation.max_rows]
    examples = list(get_template(config.task).examples(rows, source=table.name))
    writes = 0 if any(example.choices for example in examples) else config.max_new_tokens
    folder, device = site.lookup("models", config.model.name), resolve_device(site.device)
    model, tokenizer = load_base(folder, config.model, device, config.task.max_length, writes)
    if input_model is not None:
        model = load_adapter(model, Path(input_model.get_directory()))
    emit("phase", arm="", round=0, phase="answering")
    return Answerer(model, tokenizer, config.task, config.evaluation), examples


def _predictions(answerer: Answerer, examples: List[Example], max_new_tokens: int) -> Lines:
    if not examples[0].choices:
        texts = answerer.write(examples, max_new_tokens, "writing answers")
        return [{"row": row, "prediction": text.strip()} for row, text in enumerate(texts)]
    return choice_lines(examples, answerer.choice_log_probs(answerer.encode_choices(examples), "answering"))


def choice_lines(examples: Sequence[Example], log_probs: np.ndarray) -> Lines:
    """Lines of the file of predictions, from the log-probabilities of each example's choices (float [N, C])."""
    weights = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    lines = []
    for row, (example, share) in enumerate(zip(examples, shares)):
        choices = [choice.strip() for choice in example.choices or ()]
        probabilities = {choice: round(float(p), 6) for choice, p in zip(choices, share)}
        lines.append({"row": row, "prediction": choices[int(share.argmax())], "probabilities": probabilities})
    return lines

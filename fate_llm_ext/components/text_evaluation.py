"""The `text_evaluation` component: accuracy and likelihood of a model on a party's own rows."""

from fate.components.core import GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.config import EvaluationConfig, ModelConfig, TaskConfig


@cpn.component(roles=[GUEST, HOST], provider="fate_llm_ext", version=__version__)
def text_evaluation(
    ctx,
    role: Role,
    test_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="table with a test split"),
    input_model: cpn.model_directory_input(roles=[GUEST, HOST], optional=True, desc="adapter of a train stage"),
    task: cpn.parameter(type=TaskConfig, optional=False, desc="how a row becomes prompt and answer"),
    model: cpn.parameter(type=ModelConfig, optional=False, desc="the party's base model"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="batch size, row limit"),
    max_new_tokens: cpn.parameter(type=params.conint(ge=1), default=64, desc="length of generated answers"),
):
    """Evaluate a base model, or a base model with an adapter, and log accuracy and NLL per byte."""
    given = {"task": task, "model": model, "evaluation": evaluation, "max_new_tokens": max_new_tokens}
    from fate_llm_ext import worker

    worker.enter(text_evaluation.parameters.mapping)
    from fate_llm_ext.algo.inference import run_text_evaluation

    run_text_evaluation(ctx, role, {k: v for k, v in given.items() if v is not None}, test_data, input_model)

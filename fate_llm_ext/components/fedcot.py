"""The `fedcot` component: rationales of an LLM for prompts that it does not see."""

from typing import List

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.algo.fedcot.config import (
    AttackConfig,
    Comparison,
    DecodingConfig,
    LearningConfig,
    PerturbationConfig,
    QualityConfig,
    QuestionConfig,
    RationaleConfig,
    VocabularyConfig,
)
from fate_llm_ext.config import (
    EvaluationConfig,
    LLMConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    TaskConfig,
    TrainConfig,
    Weights,
)


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate_llm_ext", version=__version__)
def fedcot(ctx, role):
    """FedCoT: perturbed prompts leave, an LLM's rationales come back, a small model learns both (arXiv 2406.12403)."""


@fedcot.train()
def train(
    ctx,
    role: Role,
    train_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="private table; its test split judges the models"),
    generator: cpn.model_directory_input(
        roles=[GUEST, HOST], optional=True, desc="generator_model of an fdkt task, for the strategy dp_generator"
    ),
    task: cpn.parameter(type=TaskConfig, optional=False, desc="how a row becomes prompt and answer"),
    perturbation: cpn.parameter(type=PerturbationConfig, optional=False, desc="what leaves in place of the prompts"),
    student: cpn.parameter(type=ModelConfig, default=None, desc="base model of the SLM (clients)"),
    llm: cpn.parameter(type=LLMConfig, default=None, desc="the LLM (arbiter)"),
    seed: cpn.parameter(type=params.conint(ge=0), default=0, desc="of everything but the perturbation"),
    vocabulary: cpn.parameter(type=VocabularyConfig, default=None, desc="the public words that may leave"),
    question: cpn.parameter(type=QuestionConfig, default=None, desc="allow-listed fields, form of a question"),
    rationale: cpn.parameter(type=RationaleConfig, default=None, desc="what the LLM is asked and writes"),
    decoding: cpn.parameter(type=DecodingConfig, default=None, desc="from its rationales to the client's own"),
    quality: cpn.parameter(type=QualityConfig, default=None, desc="which of them the model learns from"),
    student_weights: cpn.parameter(type=Weights, default="full", desc="train adapters or all weights"),
    lora: cpn.parameter(type=LoraConfig, default=None, desc="low-rank adapters"),
    learning: cpn.parameter(type=LearningConfig, default=None, desc="weight and prefixes of the two tasks"),
    train: cpn.parameter(type=TrainConfig, default=None, desc="training of the SLM"),
    compare: cpn.parameter(type=List[Comparison], default=None, desc="baselines to run beside FedCoT"),
    attack: cpn.parameter(type=AttackConfig, default=None, desc="attacks on the own questions"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="evaluation on the test split"),
    network: cpn.parameter(type=NetworkConfig, default=None, desc="waiting for the other parties"),
    output_model: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER], desc="the SLM, with a card"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.fedcot.entry import run_train

    run_train(ctx, role, given, train_data, generator, output_model)


@fedcot.predict()
def predict(
    ctx,
    role: Role,
    test_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="rows to answer"),
    input_model: cpn.model_directory_input(roles=[GUEST, HOST, ARBITER], desc="output_model of the train stage"),
    task: cpn.parameter(type=TaskConfig, optional=False, desc="how a row becomes a prompt"),
    student: cpn.parameter(type=ModelConfig, default=None, desc="base model of the adapter, if one was trained"),
    student_weights: cpn.parameter(type=Weights, default="full", desc="train adapters or all weights"),
    learning: cpn.parameter(type=LearningConfig, default=None, desc="prefixes of the two tasks"),
    explain: cpn.parameter(type=bool, default=False, desc="write a rationale for each row, too"),
    decoding: cpn.parameter(type=DecodingConfig, default=None, desc="sampling of these rationales"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="batch size, row limit"),
    test_output_data: cpn.data_directory_output(roles=[GUEST, HOST], desc="predictions.jsonl"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.fedcot.inference import run_predict

    run_predict(ctx, role, given, test_data, input_model, test_output_data)


_PARAMETERS = frozenset(train.parameters.mapping) | frozenset(predict.parameters.mapping)

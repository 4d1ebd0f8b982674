"""The `fdkt` component: DP synthetic texts, augmented by an LLM, for better local models."""

from typing import List

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.algo.fdkt.config import (
    AugmentationConfig,
    Comparison,
    FeedbackConfig,
    FilterConfig,
    Head,
    PromptsConfig,
    SourceWeights,
    ValidityConfig,
)
from fate_llm_ext.config import (
    ControlConfig,
    EvaluationConfig,
    LLMConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    SynthesisConfig,
    TrainConfig,
    Weights,
)


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate_llm_ext", version=__version__)
def fdkt(ctx, role):
    """FDKT: clients' DP generators write texts, the arbiter's LLM writes more, task models learn (arXiv 2405.14212)."""


@fdkt.train()
def train(
    ctx,
    role: Role,
    train_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="private table; its test split judges the models"),
    control: cpn.parameter(type=ControlConfig, optional=False, desc="how a row becomes label and text"),
    privacy: cpn.parameter(type=PrivacyConfig, optional=False, desc="guarantee and DP-SGD of the generator"),
    description: cpn.parameter(type=str, default="a text", desc="what a client's texts are, for the LLM's prompts"),
    generator: cpn.parameter(type=ModelConfig, default=None, desc="base model of the DP generator (clients)"),
    student: cpn.parameter(type=ModelConfig, default=None, desc="base model of the task model (clients)"),
    llm: cpn.parameter(type=LLMConfig, default=None, desc="the LLM (arbiter)"),
    embedder: cpn.parameter(type=ModelConfig, default=None, desc="embeds texts for clustering (arbiter)"),
    seed: cpn.parameter(type=params.conint(ge=0), default=0, desc="of everything but noise and sampling of records"),
    generator_weights: cpn.parameter(type=Weights, default="lora", desc="train adapters or all weights"),
    student_weights: cpn.parameter(type=Weights, default="full", desc="train adapters or all weights"),
    head: cpn.parameter(type=Head, default="generation", desc="the task model writes the label, or classifies"),
    lora: cpn.parameter(type=LoraConfig, default=None, desc="low-rank adapters"),
    synthesis: cpn.parameter(type=SynthesisConfig, default=None, desc="texts sampled from the generator"),
    validity: cpn.parameter(type=ValidityConfig, default=None, desc="which of them the client keeps"),
    filter: cpn.parameter(type=FilterConfig, default=None, desc="which of them become demonstrations"),
    augmentation: cpn.parameter(type=AugmentationConfig, default=None, desc="texts that the LLM writes"),
    prompts: cpn.parameter(type=PromptsConfig, default=None, desc="templates of all that a model reads"),
    train: cpn.parameter(type=TrainConfig, default=None, desc="training of the task model"),
    weights: cpn.parameter(type=SourceWeights, default=None, desc="weight of a sample by its source"),
    with_synthetic: cpn.parameter(type=bool, default=False, desc="train on the client's own synthetic texts too"),
    feedback: cpn.parameter(type=FeedbackConfig, default=None, desc="rounds of private votes and further texts"),
    compare: cpn.parameter(type=List[Comparison], default=None, desc="baselines to run beside FDKT"),
    quality: cpn.parameter(type=bool, default=True, desc="measure the texts of each stage"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="evaluation on the test split"),
    network: cpn.parameter(type=NetworkConfig, default=None, desc="waiting for the other parties"),
    output_model: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER], desc="task model, with a card"),
    generator_model: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER], desc="DP generator, with a card"),
    augmented_data: cpn.data_directory_output(roles=[GUEST, HOST, ARBITER], desc="synthetic and augmented texts"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.fdkt.entry import run_train

    run_train(ctx, role, given, train_data, output_model, generator_model, augmented_data)


@fdkt.predict()
def predict(
    ctx,
    role: Role,
    test_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="rows to label"),
    input_model: cpn.model_directory_input(roles=[GUEST, HOST, ARBITER], desc="output_model of the train stage"),
    control: cpn.parameter(type=ControlConfig, optional=False, desc="how a row becomes a text; the labels"),
    student: cpn.parameter(type=ModelConfig, default=None, desc="base model of the adapter, if one was trained"),
    student_weights: cpn.parameter(type=Weights, default="full", desc="train adapters or all weights"),
    head: cpn.parameter(type=Head, default="generation", desc="the task model writes the label, or classifies"),
    prompts: cpn.parameter(type=PromptsConfig, default=None, desc="templates of all that a model reads"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="batch size, row limit"),
    test_output_data: cpn.data_directory_output(roles=[GUEST, HOST], desc="predictions.jsonl"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.fdkt.inference import run_predict

    run_predict(ctx, role, given, test_data, input_model, test_output_data)


_PARAMETERS = frozenset(train.parameters.mapping) | frozenset(predict.parameters.mapping)

"""The `fedmkt` component: mutual knowledge transfer between the arbiter's LLM and the data owners' SLMs."""

from typing import List

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.algo.fedmkt.config import Comparison, Direction, DistillConfig
from fate_llm_ext.config import (
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PublicConfig,
    TaskConfig,
    TrainConfig,
)


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate_llm_ext", version=__version__)
def fedmkt(ctx, role):
    """FedMKT: LLM and SLMs teach each other through top-k log-probabilities on a public set (arXiv 2406.02224)."""


@fedmkt.train()
def train(
    ctx,
    role: Role,
    train_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="private table: train and, optionally, test split"),
    task: cpn.parameter(type=TaskConfig, optional=False, desc="how a row becomes prompt and answer"),
    public: cpn.parameter(type=PublicConfig, optional=False, desc="the public set"),
    model: cpn.parameter(type=ModelConfig, optional=False, desc="the party's base model"),
    rounds: cpn.parameter(type=params.conint(ge=1, le=1000), default=3, desc="federated rounds (T)"),
    seed: cpn.parameter(type=params.conint(ge=0), default=0, desc="seed of every random choice"),
    direction: cpn.parameter(type=Direction, default="mutual", desc="who learns from whom"),
    compare: cpn.parameter(type=List[Comparison], default=None, desc="baselines to run beside FedMKT"),
    lora: cpn.parameter(type=LoraConfig, default=None, desc="low-rank adapters"),
    train: cpn.parameter(type=TrainConfig, default=None, desc="training on gold answers"),
    distill: cpn.parameter(type=DistillConfig, default=None, desc="knowledge transfer on the public set"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="evaluation on the test split"),
    network: cpn.parameter(type=NetworkConfig, default=None, desc="waiting for the other parties"),
    max_new_tokens: cpn.parameter(type=params.conint(ge=1), default=64, desc="length of generated answers"),
    warm_start_model: cpn.model_directory_input(
        roles=[GUEST, HOST, ARBITER], optional=True, desc="output_model of an earlier train stage, to go on from"
    ),
    output_model: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER], desc="adapter, tokenizer, model card"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.fedmkt.entry import run_train

    run_train(ctx, role, given, train_data, output_model, warm_start_model)


@fedmkt.predict()
def predict(
    ctx,
    role: Role,
    test_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="rows to answer"),
    input_model: cpn.model_directory_input(roles=[GUEST, HOST, ARBITER], desc="output_model of the train stage"),
    task: cpn.parameter(type=TaskConfig, optional=False, desc="how a row becomes prompt and answer"),
    model: cpn.parameter(type=ModelConfig, optional=False, desc="the party's base model"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="batch size, row limit"),
    max_new_tokens: cpn.parameter(type=params.conint(ge=1), default=64, desc="length of generated answers"),
    test_output_data: cpn.data_directory_output(roles=[GUEST, HOST], desc="predictions.jsonl"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.inference import run_predict

    run_predict(ctx, role, given, test_data, input_model, test_output_data)


_PARAMETERS = frozenset(train.parameters.mapping) | frozenset(predict.parameters.mapping)

"""The `dpkd` component: a student distilled from a differentially private teacher through synthetic text."""

from typing import List

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn, params

from fate_llm_ext import __version__
from fate_llm_ext.algo.dpkd.config import (
    Comparison,
    ControlConfig,
    DistillationConfig,
    StudentAt,
    SynthesisConfig,
    Weights,
)
from fate_llm_ext.config import (
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    PublicConfig,
    TrainConfig,
)


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate_llm_ext", version=__version__)
def dpkd(ctx, role):
    """DP-KD: a student learns from texts that a DP teacher writes, and from its distributions (arXiv 2403.00932)."""


@dpkd.train()
def train(
    ctx,
    role: Role,
    train_data: cpn.data_directory_input(roles=[GUEST, HOST], desc="private table (its train split)"),
    control: cpn.parameter(type=ControlConfig, optional=False, desc="how a row becomes control code and text"),
    privacy: cpn.parameter(type=PrivacyConfig, optional=False, desc="guarantee and DP-SGD of the teacher"),
    teacher: cpn.parameter(type=ModelConfig, default=None, desc="base model of the teacher (owners)"),
    student: cpn.parameter(type=ModelConfig, default=None, desc="base model of the student (where it is trained)"),
    rounds: cpn.parameter(type=params.conint(ge=1, le=1000), default=1, desc="rounds of the teacher (two owners)"),
    seed: cpn.parameter(type=params.conint(ge=0), default=0, desc="of everything but noise and sampling of records"),
    student_at: cpn.parameter(type=StudentAt, default="arbiter", desc="where the student is trained and kept"),
    teacher_weights: cpn.parameter(type=Weights, default="lora", desc="train adapters or all weights of the teacher"),
    student_weights: cpn.parameter(type=Weights, default="full", desc="train adapters or all weights of the student"),
    compare: cpn.parameter(type=List[Comparison], default=None, desc="baselines to run beside DP-KD"),
    lora: cpn.parameter(type=LoraConfig, default=None, desc="low-rank adapters"),
    synthesis: cpn.parameter(type=SynthesisConfig, default=None, desc="texts sampled from the teacher"),
    distill: cpn.parameter(type=DistillationConfig, default=None, desc="the student's loss"),
    train: cpn.parameter(type=TrainConfig, default=None, desc="training of the student"),
    public: cpn.parameter(type=PublicConfig, default=None, desc="public set with the test split to judge on"),
    evaluation: cpn.parameter(type=EvaluationConfig, default=None, desc="evaluation on the test split"),
    network: cpn.parameter(type=NetworkConfig, default=None, desc="waiting for the other parties"),
    output_model: cpn.model_directory_output(roles=[GUEST, HOST, ARBITER], desc="student or DP teacher, with a card"),
    synthetic_data: cpn.data_directory_output(roles=[GUEST, HOST, ARBITER], desc="texts of the DP teacher"),
):
    given = {name: value for name, value in locals().items() if name in _PARAMETERS and value is not None}
    from fate_llm_ext import worker

    worker.enter(_PARAMETERS)
    from fate_llm_ext.algo.dpkd.entry import run_train

    run_train(ctx, role, given, train_data, output_model, synthetic_data)


_PARAMETERS = frozenset(train.parameters.mapping)

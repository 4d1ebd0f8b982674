"""Parameters of DP-KD."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pydantic
from pydantic import Field
from typing_extensions import Literal

from fate_llm_ext.config import (
    ControlConfig,
    EvaluationConfig,
    Group,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    PublicConfig,
    SynthesisConfig,
    TrainConfig,
    Weights,
)

Comparison = Literal["dp_sgd_student", "dpkd", "synthetic_ce", "non_private"]
StudentAt = Literal["arbiter", "guest"]


class DistillationConfig(Group):
    """What the student learns from: (1 - λ) CE + λ t² KL + α MSE, each a mean over the text's tokens."""

    soft_weight: float = Field(0.4, ge=0.0, le=1.0, description="λ: weight of the teacher's distribution.")
    temperature: float = Field(1.0, gt=0.0, description="t, of teacher and student.")
    hidden_weight: float = Field(
        0.0, ge=0.0, description="α: weight of the hidden states (projected); needs `student_at: guest`."
    )
    top_k: int = Field(64, ge=1, le=4096, description="Log-probabilities kept per position; the rest is one bucket.")
    on_policy_rounds: int = Field(
        0, ge=0, le=100, description="Rounds in which the student writes and the DP teacher scores; at no cost."
    )
    on_policy_samples: int = Field(1000, ge=1, description="Texts that the student writes per such round.")


class DPKDConfig(Group):
    """All parameters of the `dpkd` component's train stage."""

    seed: int = Field(0, ge=0, description="Of everything but the noise and the sampling of records.")
    rounds: int = Field(1, ge=1, le=1000, description="Federated rounds of the teacher, with two owners or more.")
    control: ControlConfig
    privacy: PrivacyConfig
    teacher: Optional[ModelConfig] = Field(None, description="Base model of the teacher (owners).")
    student: Optional[ModelConfig] = Field(
        None, description="Base model of the student (where it is trained; owners need it for comparisons)."
    )
    teacher_weights: Weights = Field("lora", description="Train adapters or all weights of the teacher.")
    student_weights: Weights = Field("full", description="Train adapters or all weights of the student.")
    lora: LoraConfig = LoraConfig(dropout=0.0)
    synthesis: SynthesisConfig = SynthesisConfig()
    distill: DistillationConfig = DistillationConfig()
    train: TrainConfig = Field(TrainConfig(batch_size=16, epochs=3), description="Training of the student.")
    public: Optional[PublicConfig] = Field(None, description="Public set whose `test` split the student is judged on.")
    student_at: StudentAt = Field("arbiter", description="Where the student is trained and kept.")
    compare: List[Comparison] = Field([], description="Baselines to run and print beside DP-KD.")
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()

    @pydantic.root_validator(skip_on_failure=True)
    def _together(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        if values["distill"].hidden_weight > 0 and values["student_at"] != "guest":
            raise ValueError(
                "`distill.hidden_weight` > 0 needs `student_at: guest`: hidden states never cross the wire"
            )
        longest = values["control"].max_length
        if values["synthesis"].max_new_tokens >= longest:
            raise ValueError(
                f"`synthesis.max_new_tokens` {values['synthesis'].max_new_tokens} must be below "
                f"`control.max_length` {longest}"
            )
        return values

"""Parameters of FedMKT."""

from __future__ import annotations

from typing import List

from pydantic import Field
from typing_extensions import Literal

from fate_llm_ext.config import (
    EvaluationConfig,
    Group,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PublicConfig,
    TaskConfig,
    TrainConfig,
)

Comparison = Literal["zero_shot", "standalone", "standalone_public", "paper", "centralized"]
Direction = Literal["mutual", "llm_to_slm", "slm_to_llm"]


class DistillConfig(Group):
    """Knowledge transfer on the public set (equations 5 to 9 of the paper)."""

    supervised_weight: float = Field(0.9, ge=0.0, le=1.0, description="λ: weight of the gold answers; KD gets 1 - λ.")
    unlabelled_weight: float = Field(1.0, ge=0.0, description="Weight of a public row without an answer.")
    epochs: int = Field(1, ge=1, description="Epochs per round on the public set (R and E in the paper).")
    top_k: int = Field(32, ge=1, le=4096, description="Log-probabilities kept per position.")
    tail: Literal["bucket", "drop"] = Field("bucket", description="Mass outside the top k: one bucket, or dropped.")
    temperature: float = Field(1.0, gt=0.0, description="Temperature of the student in the KD term.")
    alignment: Literal["span", "min_ed"] = Field("span", description="Token map: byte spans, or minimum edit distance.")
    calibration_share: float = Field(
        0.2, gt=0.0, lt=0.9, description="Share of the labelled public rows held out to measure who may teach."
    )
    caution: float = Field(
        1.0, ge=0.0, description="Standard errors by which a teacher's held-out skill is discounted."
    )
    margin: float = Field(0.05, ge=0.0, description="A teacher must be this much better on held-out rows.")


class FedMKTConfig(Group):
    """All parameters of the `fedmkt` component's train stage."""

    rounds: int = Field(3, ge=1, le=1000, description="Federated rounds (T).")
    seed: int = Field(0, ge=0)
    task: TaskConfig
    public: PublicConfig
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()
    compare: List[Comparison] = Field(
        ["zero_shot", "standalone", "standalone_public"], description="Baselines to run and print beside FedMKT."
    )
    direction: Direction = Field("mutual", description="Who learns from whom.")
    max_new_tokens: int = Field(64, ge=1, description="Length of a generated answer where there are no choices.")

"""Parameters of FDKT."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pydantic
from pydantic import Field
from typing_extensions import Literal

from fate_llm_ext.config import (
    ControlConfig,
    EvaluationConfig,
    GenerationConfig,
    Group,
    LLMConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    SynthesisConfig,
    TrainConfig,
    Weights,
)

LONGEST_WORD = 1000  # characters of a label or a description
MOST_LABELS = 1000

Comparison = Literal["local", "local_synthetic", "non_private"]
Head = Literal["generation", "classification"]


class ValidityConfig(Group):
    """Which sampled texts a client keeps; it looks at the synthetic texts alone."""

    min_words: int = Field(3, ge=0, description="Shorter texts are dropped.")
    max_repetition: float = Field(
        0.5, ge=0.0, le=1.0, description="Largest share of word pairs that repeat an earlier pair of the text."
    )
    finished: bool = Field(False, description="Drop texts that ran into `synthesis.max_new_tokens`.")


class FilterConfig(Group):
    """Which of a client's texts become demonstrations (arbiter)."""

    samples_per_cluster: int = Field(8, ge=2, description="Texts per cluster (k-means) on average.")
    judge: Literal["llm", "distance"] = Field(
        "llm",
        description="Who chooses in a cluster: the LLM (by distance where its answer is unreadable) or distance.",
    )
    max_new_tokens: int = Field(48, ge=1, description="Longest answer of the LLM about a cluster.")
    duplicate_similarity: float = Field(
        0.95,
        gt=0.0,
        le=1.0,
        description="distance: of two texts with a larger cosine similarity (to their mean) one goes.",
    )
    outlier_share: float = Field(
        0.1, ge=0.0, lt=1.0, description="distance: this share of all texts, farthest from their neighbours, goes."
    )


class AugmentationConfig(GenerationConfig):
    """New labelled texts that the LLM writes after demonstrations (arbiter)."""

    samples: int = Field(1000, ge=1, description="Texts to return to each client, balanced over the labels.")
    shots: int = Field(1, ge=1, le=64, description="Demonstrations of each label in a prompt.")
    demonstrations: Optional[int] = Field(
        None, ge=1, le=4096, description="Most demonstrations in a prompt, the asked label's first; default: no limit."
    )
    temperature: float = Field(0.8, gt=0.0, description="Sampling temperature.")
    top_p: float = Field(0.9, gt=0.0, le=1.0, description="Nucleus sampling: smallest set of this mass.")
    label_by: Literal["answer", "requested", "both"] = Field(
        "answer",
        description="A text's label: what the LLM answers for it, what was asked for, or only where both agree.",
    )
    attempts: float = Field(3.0, ge=1.0, description="At most this many prompts per text asked for; some are dropped.")
    max_overlap: float = Field(
        0.5, gt=0.0, le=1.0, description="Largest share of a text's word 5-grams that may stand in its demonstrations."
    )


class PromptsConfig(Group):
    """Jinja templates of all that a model reads; `fate-llm-ext check --show-prompts` renders them."""

    judge: str = Field(
        "Here are {{ texts | length }} candidates for {{ description }}.\n\n"
        "{% for text in texts %}[{{ loop.index }}] {{ text }}\n{% endfor %}\n"
        "Which of them are well-formed and of the right kind? Leave out all but one of those that say the same. "
        "Answer with their numbers, separated by commas, or with: none\nNumbers:",
        description="Asks the LLM which texts of a cluster are eligible; variables: description, labels, texts.",
    )
    augment: str = Field(
        "{% for one in demonstrations %}{{ one.label }}: {{ one.text }}\n\n{% endfor %}{{ label }}:",
        description="Asks the LLM for a new text; variables: description, labels, demonstrations (label, text), label.",
    )
    label: str = Field(
        "{{ text }}\nWhich of {{ labels | join(', ') }}?\nAnswer:",
        description="Asks the LLM for a text's label; variables: description, labels, text.",
    )
    student: str = Field(
        "{{ text }}\nLabel:", description="What the task model reads before it answers; variables: text, labels."
    )


class FeedbackConfig(Group):
    """Private evolution: clients vote for the augmented texts nearest to their records, under DP."""

    rounds: int = Field(0, ge=0, le=100, description="Rounds of votes and further texts; each costs privacy.")
    noise: float = Field(10.0, gt=0.0, description="σ of the votes' Gaussian noise, in records.")
    share: float = Field(0.25, gt=0.0, le=1.0, description="Share of the texts, by votes, that become demonstrations.")


class SourceWeights(Group):
    """Weight of a sample's loss by where it comes from."""

    private: float = Field(1.0, gt=0.0)
    synthetic: float = Field(1.0, gt=0.0)
    augmented: float = Field(1.0, gt=0.0)


class FDKTConfig(Group):
    """All parameters of the `fdkt` component's train stage."""

    seed: int = Field(0, ge=0, description="Of everything but the noise and the sampling of records.")
    control: ControlConfig
    description: str = Field(
        "a text", regex=r"\S", max_length=LONGEST_WORD, description="What a client's texts are, for the LLM's prompts."
    )
    privacy: PrivacyConfig
    generator: Optional[ModelConfig] = Field(None, description="Base model of the DP generator (clients).")
    generator_weights: Weights = Field("lora", description="Train adapters or all weights of the generator.")
    lora: LoraConfig = LoraConfig(dropout=0.0)
    synthesis: SynthesisConfig = SynthesisConfig(samples=1000, top_k=50, top_p=0.9)
    validity: ValidityConfig = ValidityConfig()
    filter: FilterConfig = FilterConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    prompts: PromptsConfig = PromptsConfig()
    llm: Optional[LLMConfig] = Field(None, description="The LLM (arbiter).")
    embedder: Optional[ModelConfig] = Field(
        None,
        description="Model whose mean-pooled hidden states embed a text; default: the LLM itself (arbiter).",
    )
    student: Optional[ModelConfig] = Field(None, description="Base model of the task model (clients).")
    student_weights: Weights = Field("full", description="Train adapters or all weights of the task model.")
    head: Head = Field("generation", description="The task model writes the label, or has a classification head.")
    train: TrainConfig = Field(TrainConfig(batch_size=16, epochs=3), description="Training of the task model.")
    weights: SourceWeights = SourceWeights()
    with_synthetic: bool = Field(False, description="Also train on the client's own synthetic texts.")
    feedback: FeedbackConfig = FeedbackConfig()
    compare: List[Comparison] = Field([], description="Baselines to run and print beside FDKT.")
    quality: bool = Field(True, description="Measure fidelity, label agreement and diversity of each stage's texts.")
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()

    @pydantic.root_validator(skip_on_failure=True)
    def _together(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        longest = values["control"].max_length
        if values["synthesis"].max_new_tokens >= longest:
            raise ValueError(
                f"`synthesis.max_new_tokens` {values['synthesis'].max_new_tokens} must be below "
                f"`control.max_length` {longest}"
            )
        labels = values["control"].values
        if not 2 <= len(labels) <= MOST_LABELS:
            raise ValueError(f"`control.values` holds {len(labels)} label(s), a task has 2 to {MOST_LABELS}")
        longest = max(map(len, labels))
        if longest > LONGEST_WORD:
            raise ValueError(
                f"a label of `control.values` has {longest} characters, at most {LONGEST_WORD} are allowed"
            )
        return values


class PredictConfig(Group):
    """All parameters of the `fdkt` component's predict stage; they have to be those of the training."""

    control: ControlConfig
    student: Optional[ModelConfig] = Field(None, description="Base model of the adapter, if an adapter was trained.")
    student_weights: Weights = Field("full", description="What was trained: adapters or all weights.")
    head: Head = Field("generation", description="How the task model answers.")
    prompts: PromptsConfig = PromptsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

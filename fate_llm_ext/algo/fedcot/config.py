"""Parameters of FedCoT."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional

import pydantic
from pydantic import Field
from typing_extensions import Literal

from fate_llm_ext.config import (
    EvaluationConfig,
    GenerationConfig,
    Group,
    LLMConfig,
    LoraConfig,
    ModelConfig,
    NetworkConfig,
    TaskConfig,
    TrainConfig,
    Weights,
)

LONGEST_WORD = 1000  # characters of a choice
MOST_CHOICES = 1000

Strategy = Literal["exponential", "adaptive_exponential", "fixed_vocabulary", "metric", "dp_generator", "none"]
Comparison = Literal["standalone"]
Attack = Literal["inversion", "infill", "ratio"]

WORD_BY_WORD = ("exponential", "adaptive_exponential", "fixed_vocabulary", "metric")  # strategies that need ε
WITHOUT_POSITIONS = ("adaptive_exponential", "dp_generator")  # those that ask about texts that are no private rows


class PerturbationConfig(Group):
    """How the private prompts are hidden; what each strategy guarantees stands in docs/fedcot.md and in the report."""

    strategy: Strategy = Field(
        ..., description="What leaves in place of a private prompt; only some strategies are differentially private."
    )
    epsilon: Optional[float] = Field(
        None, gt=0.0, lt=float("inf"), description="ε of one word, where the strategy replaces words one by one."
    )
    sharpness: float = Field(
        1.0,
        ge=1.0,
        description="fixed_vocabulary: exponent of the similarity; large: as randomised response, near words no better "
        "than far ones.",
    )
    proxy: Optional[str] = Field(
        None,
        description="adaptive_exponential: name under `public` of prompts that are not private, to learn from.",
    )
    proxy_rows: int = Field(200, ge=1, description="adaptive_exponential: use at most this many of them (first ones).")
    samples: int = Field(500, ge=1, description="dp_generator: prompts to sample in place of the private ones.")


class VocabularyConfig(Group):
    """The closed, public list of words that may leave, and their vectors."""

    size: int = Field(2000, ge=2, le=200_000, description="Most words; fewer where the source has fewer.")
    public: Optional[str] = Field(
        None,
        description="Name under `public`: its most frequent words; default: the whole words of the model's tokenizer.",
    )
    model: Optional[ModelConfig] = Field(
        None, description="Model whose input embedding gives the vectors; default: the student's own."
    )


class QuestionConfig(Group):
    """What leaves a client: a fixed form around perturbed fields, and nothing else."""

    fields: List[str] = Field(
        [],
        description="The private fields of a row that may leave, perturbed; default: those of the built-in template.",
    )
    template: Optional[str] = Field(
        None,
        description="Jinja template of a question over these fields and `choices` (public); default: by the task.",
    )
    max_words: int = Field(64, ge=1, le=65536, description="Words of one record that leave, all fields together.")


class Demonstration(Group):
    """A public example that shows the LLM how to answer."""

    question: str = Field(..., regex=r"\S")
    rationale: str = Field(..., regex=r"\S")
    answer: str = Field(..., regex=r"\S")


class RationaleConfig(GenerationConfig):
    """Rationales that the LLM writes (arbiter)."""

    demonstrations: List[Demonstration] = Field(
        [], max_items=64, description="Public examples in front of every question (few-shot chain of thought)."
    )
    prompt: str = Field(
        "{% for one in demonstrations %}Q: {{ one.question }}\nA: {{ one.rationale }} So the answer is {{ one.answer }}"
        ".\n\n{% endfor %}Q: {{ question }}\nA:",
        description="Jinja template of what the LLM reads; variables: demonstrations, question, choices.",
    )
    stop: List[str] = Field(["\n\n", "\nQ:"], max_items=4, description="A rationale ends before the first of these.")
    answer: str = Field(
        r"(?i)(?:so )?the answer is:?\s*\(?((?:[^).\n]|\.(?=\S))+)",
        description="Regular expression whose first group is the answer in what the LLM writes.",
    )
    recorded: bool = Field(
        False,
        description="The LLM is a recording, which finds its answer by the row's position: positions leave the client.",
    )
    temperature: float = Field(0.7, gt=0.0, description="Sampling temperature.")
    max_new_tokens: int = Field(96, ge=1, description="Longest rationale in tokens.")

    @pydantic.validator("answer")
    def _readable(cls, answer: str) -> str:
        try:
            groups = re.compile(answer).groups
        except re.error as error:
            raise ValueError(f"{answer!r} is no regular expression: {error}") from None
        if not groups:
            raise ValueError(f"{answer!r} has no group for the answer, put it into ( )")
        return answer


class DecodingConfig(GenerationConfig):
    """How a client turns a rationale for the perturbed prompt into one for its own."""

    method: Literal["model", "substitution", "none"] = Field(
        "substitution",
        description="model: the client's SLM rewrites it (as in the paper); substitution: words that stand for others "
        "are put back; none: as it comes. adaptive_exponential: model unless none is set.",
    )
    prompt: str = Field(
        "Question: {{ perturbed }}\nReason: {{ rationale }}\n\nQuestion: {{ question }}\nReason:",
        description="model: Jinja template of what the SLM reads; variables: perturbed, rationale, question.",
    )
    temperature: float = Field(0.7, gt=0.0, description="model: sampling temperature.")
    max_new_tokens: int = Field(96, ge=1, description="model: longest rationale in tokens.")


class QualityConfig(Group):
    """Which rationales a client learns from; it decides by its own record, and nobody hears which were dropped."""

    min_words: int = Field(3, ge=0, description="Shorter ones are dropped.")
    max_words: int = Field(200, ge=1, description="Longer ones are dropped.")
    finished: bool = Field(False, description="Drop those that ran into `rationale.max_new_tokens`.")
    consistent: bool = Field(True, description="Drop those whose answer is not the record's label.")
    answered: bool = Field(False, description="Drop those in which no answer can be read.")
    max_copy: float = Field(
        0.8, gt=0.0, le=1.0, description="Largest share of a rationale's word pairs that may stand in the prompt."
    )

    @pydantic.root_validator(skip_on_failure=True)
    def _order(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        if values["min_words"] > values["max_words"]:
            raise ValueError(f"`min_words` {values['min_words']} is above `max_words` {values['max_words']}")
        return values


class LearningConfig(Group):
    """The two tasks of the SLM: L = (1-α) L_label + α L_rationale."""

    alpha: float = Field(0.5, ge=0.0, lt=1.0, description="Weight of the rationales.")
    predict: str = Field("Predict: ", description="Stands before a prompt that asks for the label.")
    explain: str = Field("Explain: ", description="Stands before a prompt that asks for the rationale.")
    answer_tokens: int = Field(
        32, ge=1, description="Longest answer that the SLM writes, in tokens, where a task has no choices."
    )

    @pydantic.root_validator(skip_on_failure=True)
    def _different(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        if values["predict"] == values["explain"]:
            raise ValueError("`predict` and `explain` are the same: the model could not tell its tasks apart")
        return values


class AttackConfig(Group):
    """What an attacker who knows mechanism, vocabulary and vectors reads in the questions; measured at the client."""

    methods: List[Attack] = Field(
        ["inversion", "ratio"],
        description="inversion: nearest or most probable word; infill: a language model guesses it from its "
        "neighbours; ratio: exact probability ratios of the mechanism on its table. Empty: no attack.",
    )
    words: int = Field(5000, ge=1, description="Attack at most this many words.")
    model: Optional[ModelConfig] = Field(None, description="infill: the language model; default: the student's base.")


class FedCoTConfig(Group):
    """All parameters of the `fedcot` component's train stage."""

    seed: int = Field(0, ge=0, description="Of everything but the perturbation.")
    task: TaskConfig
    perturbation: PerturbationConfig
    vocabulary: VocabularyConfig = VocabularyConfig()
    question: QuestionConfig = QuestionConfig()
    llm: Optional[LLMConfig] = Field(None, description="The LLM (arbiter).")
    rationale: RationaleConfig = RationaleConfig()
    decoding: DecodingConfig = DecodingConfig()
    quality: QualityConfig = QualityConfig()
    student: Optional[ModelConfig] = Field(None, description="The SLM (clients): decoder-only or encoder-decoder.")
    student_weights: Weights = Field("full", description="Train adapters or all weights of the SLM.")
    lora: LoraConfig = LoraConfig(dropout=0.0)
    learning: LearningConfig = LearningConfig()
    train: TrainConfig = Field(TrainConfig(batch_size=16, epochs=3), description="Training of the SLM.")
    compare: List[Comparison] = Field([], description="Baselines to run and print beside FedCoT.")
    attack: AttackConfig = AttackConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()

    @pydantic.root_validator(skip_on_failure=True)
    def _together(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        how = values["perturbation"]
        if (how.epsilon is None) == (how.strategy in WORD_BY_WORD):
            needs = "needs" if how.epsilon is None else "takes no"
            raise ValueError(f"`perturbation.strategy` {how.strategy} {needs} `perturbation.epsilon`")
        if (how.proxy is None) == (how.strategy == "adaptive_exponential"):
            needs = "needs" if how.proxy is None else "takes no"
            raise ValueError(f"`perturbation.strategy` {how.strategy} {needs} `perturbation.proxy`")
        if how.strategy == "adaptive_exponential":
            values["decoding"] = _by_model(values["decoding"])
        if values["rationale"].recorded and how.strategy in WITHOUT_POSITIONS:
            raise ValueError(
                "`rationale.recorded` finds an answer by the row's position, and `perturbation.strategy` "
                f"{how.strategy} asks about texts that have none"
            )
        longest = max(len(one) for one in values["task"].choices or [""])
        if longest > LONGEST_WORD or len(values["task"].choices or ()) > MOST_CHOICES:
            raise ValueError(
                f"`task.choices` holds {len(values['task'].choices)} choices of up to {longest} characters, at most "
                f"{MOST_CHOICES} of {LONGEST_WORD} are allowed"
            )
        return values


def _by_model(decoding: DecodingConfig) -> DecodingConfig:
    """The decoding of a strategy whose words stand for no single ones, so that none can be put back."""
    if decoding.method == "substitution" and "method" in decoding.__fields_set__:
        raise ValueError(
            "`decoding.method` substitution puts single words back, and with `perturbation.strategy` "
            "adaptive_exponential a model rewrites whole prompts: leave it out, or set model or none"
        )
    return decoding if decoding.method == "none" else decoding.copy(update={"method": "model"})


class PredictConfig(Group):
    """All parameters of the `fedcot` component's predict stage; they have to be those of the training."""

    task: TaskConfig
    student: Optional[ModelConfig] = Field(None, description="Base model of the adapter, if an adapter was trained.")
    student_weights: Weights = Field("full", description="What was trained: adapters or all weights.")
    learning: LearningConfig = LearningConfig()
    explain: bool = Field(False, description="Also write a rationale for each row; without it only the label (cheap).")
    decoding: DecodingConfig = Field(DecodingConfig(), description="Sampling of these rationales.")
    evaluation: EvaluationConfig = EvaluationConfig()

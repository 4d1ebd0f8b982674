"""Parameter groups shared by the components, as pydantic (v1) models.

A group is one parameter of a FATE component. The same models give `component desc`, the client
definitions, the docs table and the validation, so each field is documented here and nowhere else.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pydantic
from pydantic import Field
from typing_extensions import Literal

Weights = Literal["lora", "full"]


class Group(pydantic.BaseModel):
    """Base of all parameter groups: unknown keys are errors, values are immutable."""

    class Config:
        extra = "forbid"
        allow_mutation = False


class TaskConfig(Group):
    """How a row becomes a prompt and an answer."""

    template: Optional[str] = Field(
        None, description="Built-in template, e.g. ag_news (see `fate-llm-ext data templates`)."
    )
    prompt: Optional[str] = Field(None, description="Jinja template of the prompt; replaces the built-in one.")
    answer: Optional[str] = Field(None, description="Jinja template of the answer; replaces the built-in one.")
    choices: Optional[List[str]] = Field(None, description="The closed list of answers of a classification task.")
    columns: Dict[str, str] = Field(
        default_factory=dict, description="Column mapping: template name -> column of the file."
    )
    max_length: int = Field(
        256, ge=8, le=65536, description="Longest sequence in tokens; longer prompts lose their beginning."
    )

    @pydantic.root_validator
    def _one_source(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        if not values.get("template") and not (values.get("prompt") and values.get("answer")):
            raise ValueError("give `template`, or both `prompt` and `answer`")
        return values


class PublicConfig(Group):
    """The public set, known to every party."""

    name: str = Field(..., description="Name under `public` in each party's site file.")
    labelled: Optional[int] = Field(None, ge=1, description="Use at most this many rows with an answer (first ones).")
    unlabelled: Optional[int] = Field(
        None, ge=0, description="Use at most this many rows without an answer (first ones)."
    )


class ModelConfig(Group):
    """The party's base model."""

    name: str = Field(..., description="Name under `models` in the party's site file.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, float32 on CPU.")


class LLMConfig(Group):
    """The LLM that writes at the arbiter: a local model, one behind an OpenAI-compatible server, or a recording."""

    name: str = Field(..., description="Name under `models`, `endpoints` or `recordings` in the party's site file.")
    adapter: Optional[str] = Field(
        None, description="Name under `models` of a LoRA adapter of the local model; it is applied, not merged."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of a local model, as in `model`.")


class LoraConfig(Group):
    """Low-rank adapters (peft); the base model stays frozen."""

    r: int = Field(8, ge=1, le=1024, description="Rank.")
    alpha: int = Field(16, ge=1, description="Scale; the update is multiplied by alpha / r.")
    dropout: float = Field(0.05, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    embeddings: bool = Field(False, description="Also adapt input embedding and output head; small models need it.")
    target_modules: Optional[List[str]] = Field(
        None, description="Module names; default: all linear layers but the output head."
    )


class TrainConfig(Group):
    """Training on gold answers (transformers' Trainer)."""

    learning_rate: float = Field(3e-4, gt=0.0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(4, ge=1, description="Sequences per optimizer step and device.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches per optimizer step.")
    epochs: int = Field(1, ge=1, description="Epochs per round on the private set (E in the paper).")
    weight_decay: float = Field(0.1, ge=0.0)
    warmup_ratio: float = Field(0.008, ge=0.0, le=1.0, description="Share of a phase's steps with rising rate.")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Gradient clipping.")


class PrivacyConfig(Group):
    """DP-SGD: the guarantee asked for and how the noisy training runs. The unit is one record (add or remove)."""

    epsilon: float = Field(..., gt=0.0, description="ε of all that this job releases about a table; .inf: no noise.")
    delta: Optional[float] = Field(
        None, gt=0.0, lt=1.0, description="δ, below 1 / records; default: records to the power of -1.1."
    )
    max_grad_norm: float = Field(1.0, gt=0.0, description="C: norm to which each record's gradient is clipped.")
    accountant: Literal["prv", "rdp", "pld"] = Field("prv", description="prv and pld are tight, rdp reports more.")
    batch_size: int = Field(256, ge=1, description="Expected records per step (Poisson sampling); large is good.")
    physical_batch_size: int = Field(8, ge=1, description="Records at a time in memory.")
    epochs: float = Field(10.0, gt=0.0, description="Expected passes over the records, all rounds together.")
    learning_rate: float = Field(1e-3, gt=0.0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_ratio: float = Field(0.05, ge=0.0, le=1.0, description="Share of the steps with rising rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="Rate after the warm-up.")
    per_sample: Literal["auto", "hooks", "ghost", "loop"] = Field(
        "auto", description="How per-record gradients are clipped; auto takes the cheapest that the model allows."
    )


class GenerationConfig(Group):
    """Sampling of text."""

    temperature: float = Field(1.0, gt=0.0, description="Sampling temperature.")
    top_k: int = Field(50, ge=0, description="Sample among the k most probable tokens; 0: all.")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="Nucleus sampling: smallest set of this mass.")
    max_new_tokens: int = Field(64, ge=1, description="Longest text in tokens.")
    batch_size: int = Field(64, ge=1, description="Texts sampled at a time.")


class ControlConfig(Group):
    """Control codes (labels): what a generator is asked to write. The list is public, whose code is whose is not."""

    code: str = Field(..., description="Jinja template of a row's control code, e.g. `{{ category }}`.")
    text: str = Field("{{ text }}", description="Jinja template of a row's text.")
    values: List[str] = Field(..., min_items=1, description="All control codes, in public.")
    columns: Dict[str, str] = Field(
        default_factory=dict, description="Column mapping: template name -> column of the file."
    )
    prompt: str = Field("{{ code }}\n\n", description="Jinja template of the prompt that asks for a text of a code.")
    max_length: int = Field(128, ge=8, le=65536, description="Longest sequence of code and text in tokens.")
    frequencies: Literal["uniform", "histogram"] = Field(
        "uniform", description="How often each code is asked for: alike, or as in the private data by a DP histogram."
    )
    histogram_noise: float = Field(10.0, gt=0.0, description="σ of the histogram's noise, in records.")

    @pydantic.validator("values")
    def _distinct(cls, values: List[str]) -> List[str]:
        empty = [index for index, value in enumerate(values) if not value.strip()]
        if empty:
            raise ValueError(f"control code {empty[0]} of {len(values)} is empty")
        different = len({" ".join(value.split()) for value in values})
        if different < len(values):
            raise ValueError(f"{len(values)} control codes, {different} different ones")
        return values


class SynthesisConfig(GenerationConfig):
    """Texts sampled from a DP generator: post-processing, at no cost."""

    samples: int = Field(4000, ge=1, description="Texts to sample (DP-KD: all owners together); repetitions go.")


class NetworkConfig(Group):
    """How long a party waits for the others."""

    silence_seconds: float = Field(120.0, gt=0.0, description="Longest silence of a party before it counts as lost.")
    startup_seconds: float = Field(
        900.0, gt=0.0, description="Longest silence before a party's first message, while it loads its model."
    )
    heartbeat_seconds: float = Field(10.0, gt=0.0, description="A busy party says so this often.")


class EvaluationConfig(Group):
    """Evaluation on the `test` split of the party's table, or of the public set."""

    batch_size: int = Field(32, ge=1)
    max_rows: Optional[int] = Field(None, ge=1, description="Evaluate on the first rows only.")
    each_round: bool = Field(True, description="False: only at the end.")

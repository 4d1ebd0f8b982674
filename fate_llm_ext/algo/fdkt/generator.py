"""The client's DP generator: what it writes, and how it is kept.

    s = prompt(label) + text;    D' ~ generator(. | prompt(label))        (FDKT, arXiv 2405.14212)

All here is post-processing of DP-SGD, and of the noisy histogram if the labels' frequencies are asked for: nothing
looks at a private row, so texts may be sampled, dropped and sent at no further cost.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, Tuple, Union

import numpy as np
import pydantic
import torch
from typing_extensions import Literal

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import ValidityConfig
from fate_llm_ext.algo.fdkt.validity import REASONS, Validity
from fate_llm_ext.algo.synthesis import distinct, sample_texts
from fate_llm_ext.config import ControlConfig, Group, ModelConfig, SynthesisConfig, Weights
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import load_base
from fate_llm_ext.models.lora import load_adapter
from fate_llm_ext.privacy import report
from fate_llm_ext.privacy.report import INFINITE

logger = logging.getLogger(__name__)

FILE = "fdkt_generator.json"  # beside the weights
FORMAT, VERSION = "fdkt_generator", 1


class SavedGenerator(Group):
    """What has to be known to sample from a generator that a task has left behind (:data:`FILE`)."""

    format: Literal["fdkt_generator"] = "fdkt_generator"
    version: Literal[1] = 1
    base_model: str = pydantic.Field(..., description="Name of the base model under `models` of a site file.")
    weights: Weights = pydantic.Field(..., description="The folder holds an adapter (lora) or the whole model (full).")
    control: ControlConfig
    synthesis: SynthesisConfig
    epsilon: Union[Literal["infinity"], float] = pydantic.Field(..., description="Of all that the task released.")
    delta: Optional[float] = pydantic.Field(None, description="At this δ; none for an ε of infinity.")
    privacy: str = pydantic.Field(..., description="The statement's headline.")

    @property
    def guarantee(self) -> Tuple[float, Optional[float]]:
        """(ε, δ) of the generator and of all that is sampled from it; (inf, None) without privacy."""
        return (math.inf, None) if self.epsilon == INFINITE else (float(self.epsilon), self.delta)

    @pydantic.root_validator(skip_on_failure=True)
    def _whole(cls, values: Dict[str, Any]) -> Dict[str, Any]:
        if (values["epsilon"] == INFINITE) != (values["delta"] is None):
            raise ValueError(f"ε is {values['epsilon']} and δ is {values['delta']}")
        if values["epsilon"] != INFINITE and not 0 <= values["epsilon"] < math.inf:
            raise ValueError(f"ε is {values['epsilon']}")
        return values


class Writer(Protocol):
    """A causal language model with its tokenizer."""

    @property
    def network(self) -> Any: ...  # noqa: D102

    @property
    def tokenizer(self) -> Any: ...  # noqa: D102


def sample_valid(
    model: Writer,
    control: ControlConfig,
    counts: np.ndarray,
    synthesis: SynthesisConfig,
    validity: ValidityConfig,
    *,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Tuple[Records, Dict[str, int]]:
    """Sample ``counts[c]`` texts of each label c from the generator and keep those that are valid.

    Args:
        counts: texts to sample of each label (int [C]).
        seed: public; the same one gives the same texts from the same generator.

    Returns:
        The valid texts in the labels' order, and how many were dropped for each of
        :data:`~fate_llm_ext.algo.fdkt.validity.REASONS`, the first that fits. A label may be left without a text.

    Raises:
        ExtensionError: E730 texts were asked for and none is valid; E662, E665 as
            :func:`~fate_llm_ext.algo.synthesis.sample_texts`.
    """
    written, ended = sample_texts(
        model.network, model.tokenizer, control, counts, synthesis, seed=seed, heartbeat=heartbeat
    )
    records, dropped = valid(written, ended, control, validity)
    if len(written) and not len(records):
        told = ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
        raise ExtensionError("E730", asked=len(written), dropped=told)
    per_label = np.bincount(records.codes, minlength=len(counts))
    for label in np.flatnonzero((per_label == 0) & (np.asarray(counts) > 0)).tolist():
        logger.warning("none of %d texts of label %d of %d is valid", counts[label], label + 1, len(counts))
    return records, dropped


def valid(
    records: Records, ended: np.ndarray, control: ControlConfig, config: ValidityConfig
) -> Tuple[Records, Dict[str, int]]:
    """Leave out texts that are not valid, or repeat an earlier valid one up to white space and case.

    Args:
        ended: which texts the model has ended itself (bool [S]).
    """
    dropped = dict.fromkeys(REASONS, 0)
    validity = Validity(config, control)
    good = []
    for index, (text, own) in enumerate(zip(records.texts, ended.tolist())):
        problem = validity.problem(text, own)
        if problem is None:
            good.append(index)
        else:
            dropped[problem] += 1
    kept, again = distinct([records.texts[index] for index in good])
    dropped["duplicate"] += again["duplicate"]
    chosen = [good[index] for index in kept]
    return records.take(chosen), dropped


def save_generator(
    model: Model, control: ControlConfig, synthesis: SynthesisConfig, statement: Mapping[str, Any], folder: Path
) -> None:
    """Write :data:`FILE` and ``privacy.json`` beside weights that :meth:`Model.save` has written.

    Args:
        statement: of the task (:func:`~fate_llm_ext.privacy.report.statement`).
    """
    guarantee = statement["guarantee"]
    saved = SavedGenerator(
        base_model=model.name,
        weights=model.weights,
        control=control,
        synthesis=synthesis,
        epsilon=guarantee["epsilon"],
        delta=guarantee["delta"],
        privacy=report.headline(statement),
    )
    report.save(statement, folder)
    text = json.dumps(saved.dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_generator(folder: Path) -> SavedGenerator:
    """What :func:`save_generator` has written.

    Raises:
        ExtensionError: E731 there is no such file; E732 it is of another version; E733 it is something else.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExtensionError("E731", folder=folder, file=FILE, reason=error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise ExtensionError("E733", path=path, reason="it is no JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ExtensionError("E733", path=path, reason=f"its `format` is not {FORMAT}")
    if found.get("version") != VERSION:
        raise ExtensionError("E732", path=path, got=found.get("version"), known=VERSION)
    try:
        return SavedGenerator(**found)
    except pydantic.ValidationError as error:
        told = [f"`{'.'.join(map(str, one['loc']))}`: {one['msg']}" for one in error.errors()]
        raise ExtensionError("E733", path=path, reason="; ".join(told)) from error


def load_generator(folder: Path, base: Path, settings: ModelConfig, device: torch.device) -> Tuple[Any, Any]:
    """A saved generator, ready to sample from: (network, tokenizer).

    Args:
        folder: that a task has written.
        base: folder of the base model that it names; not read if all weights were trained.
        settings: of the base model, for its precision.

    Raises:
        ExtensionError: as :func:`read_generator`; E402 to E408, E405 what is wrong with model or adapter.
    """
    saved = read_generator(folder)
    length = saved.control.max_length
    if saved.weights == "full":
        return load_base(folder, settings, device, length)
    network, tokenizer = load_base(base, settings, device, length)
    return load_adapter(network, folder).eval(), tokenizer

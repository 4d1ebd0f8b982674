"""A model that an algorithm trains: loaded, put back, saved; and the causal LM on texts with control codes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.algo.control import Records, encode_records
from fate_llm_ext.config import ControlConfig, LoraConfig, ModelConfig, Weights
from fate_llm_ext.models.loading import load_base
from fate_llm_ext.models.lora import AdapterState, adapter_state, add_lora, load_adapter_state
from fate_llm_ext.models.quiet import quiet
from fate_llm_ext.models.saving import save_model


class Trainable(ABC):
    """A base model of which an adapter or all weights are trained.

    Args:
        folder: Hugging Face folder of the base model.
        settings: its name in the site file, for the card, and its precision.
        weights: what is trained.
        lora: of the adapter, if that is trained.
        seed: of the adapter's first weights.
        heartbeat: called while something takes long.

    Raises:
        ExtensionError: E402 to E408 as :func:`~fate_llm_ext.models.loading.load_base`.
    """

    task_type = "CAUSAL_LM"  # peft's name of the kind of model

    def __init__(
        self,
        folder: Path,
        settings: ModelConfig,
        weights: Weights,
        lora: LoraConfig,
        seed: int,
        device: torch.device,
        heartbeat: Callable[[str], None],
    ) -> None:
        heartbeat("loading a model")
        self.name = settings.name
        self.weights = weights
        self.lora = lora
        network, self.tokenizer = self._load(folder, settings, seed, device)
        self.network: Any = network
        if weights == "lora":
            heartbeat("placing the adapter")
            self.network = add_lora(network, lora, seed, self.task_type)
        self._initial = self.state()

    @abstractmethod
    def _load(self, folder: Path, settings: ModelConfig, seed: int, device: torch.device) -> Tuple[Any, Any]:
        """Network and tokenizer; ``seed`` is for what the folder does not hold."""

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return int(self.tokenizer.pad_token_id)

    def state(self) -> AdapterState:
        """A copy of the weights that are trained."""
        return adapter_state(self.network)

    def restore(self, state: Optional[AdapterState] = None) -> None:
        """Back to a state, by default to the untrained one."""
        load_adapter_state(self.network, self._initial if state is None else state)

    def arrays(self) -> List[np.ndarray]:
        """The weights that are trained, as float64 arrays."""
        return [p.detach().cpu().double().numpy() for p in self.network.parameters() if p.requires_grad]

    def take(self, arrays: Sequence[np.ndarray]) -> None:
        """Put arrays in the place of the trained weights."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, value in zip(trained, arrays):
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def fingerprint(self) -> str:
        """SHA-256 of the base model and of what is trained of it; the same whatever precision a site computes in."""
        digest = hashlib.sha256()
        what = {"weights": self.weights, "lora": self.lora.dict() if self.weights == "lora" else None}
        digest.update(json.dumps(what, sort_keys=True).encode())
        for name, parameter in sorted(self.network.named_parameters(), key=lambda pair: pair[0]):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.requires_grad}".encode())
            # A fresh adapter is drawn on the site's own device, where the same seed may give other numbers.
            if not (self.weights == "lora" and parameter.requires_grad):
                digest.update(parameter.detach().to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        return digest.hexdigest()

    def save(self, folder: Path, card: str) -> None:
        """Write adapter or model, tokenizer and card in Hugging Face layout."""
        if self.weights == "full":
            save_model(self.network, self.tokenizer, folder, card)
            return
        for settings in self.network.peft_config.values():
            settings.base_model_name_or_path = self.name  # no path of this machine travels
        with quiet():
            self.network.save_pretrained(str(folder), save_embedding_layers=False)
            self.tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")


class Model(Trainable):
    """A causal LM on texts with control codes.

    Args:
        control: how records become sequences.

    The others are those of :class:`Trainable`.
    """

    def __init__(
        self,
        folder: Path,
        settings: ModelConfig,
        weights: Weights,
        lora: LoraConfig,
        control: ControlConfig,
        seed: int,
        device: torch.device,
        heartbeat: Callable[[str], None],
    ) -> None:
        self.control = control
        super().__init__(folder, settings, weights, lora, seed, device, heartbeat)

    def _load(self, folder: Path, settings: ModelConfig, seed: int, device: torch.device) -> Tuple[Any, Any]:
        return load_base(folder, settings, device, self.control.max_length)

    def encode(self, records: Records) -> List[Encoded]:
        """The records as this model's tokens."""
        return encode_records(self.tokenizer, records, self.control)

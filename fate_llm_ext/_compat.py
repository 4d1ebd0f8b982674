"""The single place for differences between the supported sets of versions.

*modern* is the newest transformers, accelerate, peft and opacus beside an untouched pyfate;
*compat* is exactly what FATE 2.2 pins. Their versions stand in ``fate_llm_ext/constraints/``.
Nothing here imports a heavy module.
"""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).with_name("constraints")


def installed_version(distribution: str) -> str | None:
    """The installed version from package metadata, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_set() -> str:
    """Which supported set this interpreter runs: ``modern``, ``compat`` or ``unknown``."""
    transformers = installed_version("transformers") or ""
    if transformers.startswith("5."):
        return "modern"
    if transformers.startswith("4.37."):
        return "compat"
    return "unknown"


def expected_versions(set_name: str) -> dict[str, str]:
    """Distribution (lower case, dashes) -> tested version, read from the set's constraint file."""
    path = CONSTRAINTS / f"{set_name}.txt"
    if not path.exists():
        return {}
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins = (line.split("==", 1) for line in lines if "==" in line)
    return {normalized(name): version for name, version in pins}


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it: ``ruamel.yaml`` is ``ruamel-yaml``."""
    return distribution.lower().replace("_", "-").replace(".", "-")


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """How `from_pretrained` wants the type of the weights: 4.37 knows `torch_dtype` only, 5 warns about it."""
    return {"torch_dtype" if (installed_version("transformers") or "").startswith("4.") else "dtype": dtype}


def select_cache_rows(cache: Any, rows: Any, batch: int) -> Any:
    """The key-value cache of the chosen ``rows`` (int tensor, repeats allowed) of a ``batch``.

    5 has an object that does it in place; 4.37 has tuples of tensors per layer, in which BLOOM joins batch and heads.
    """
    if hasattr(cache, "batch_select_indices"):
        cache.batch_select_indices(rows)
        return cache
    return tuple(
        tuple(part.reshape(batch, -1, *part.shape[1:])[rows].flatten(0, 1) for part in layer) for layer in cache
    )


def roomy_cache(cache: Any, tokens: int) -> Any:
    """The cache with room for further ``tokens``, which then are written in place.

    5 copies all of the cache at each token, which for long prompts costs more than the attention; 4.37 does so
    inside the models, and its cache is returned as it is. Layers of other kinds (sliding windows) stay.
    """
    if not hasattr(cache, "batch_select_indices"):
        return cache
    plain, roomy = _layers()
    if hasattr(cache, "self_attention_cache"):  # what a decoder has read of the prompt never grows
        roomy_cache(cache.self_attention_cache, tokens)
        return cache
    cache.layers = [roomy(layer, tokens) if type(layer) is plain else layer for layer in cache.layers]
    return cache


@functools.cache
def _layers() -> tuple[type, type]:
    """A cache layer of 5, and one with room."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """Keys and values are the first places of larger tensors [batch, heads, places, width]."""

        def __init__(self, layer: Any, tokens: int) -> None:
            super().__init__()
            self.__dict__.update(vars(layer))
            self._room(layer.get_seq_length() + tokens)

        def _room(self, places: int) -> None:
            self._stores = []
            for name in ("keys", "values"):
                part = getattr(self, name)
                store = part.new_empty((*part.shape[:2], places, part.shape[3]))
                store[:, :, : part.shape[2]] = part
                self._stores.append(store)
                setattr(self, name, store[:, :, : part.shape[2]])

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            if end > self._stores[0].shape[2]:
                self._room(2 * end)
            for store, states in zip(self._stores, (key_states, value_states)):
                store[:, :, start:end] = states
            self.keys, self.values = (store[:, :, :end] for store in self._stores)
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            places = self._stores[0].shape[2]
            self.keys, self.values = self.keys[indices], self.values[indices]
            self._room(places)

    return DynamicLayer, RoomyLayer

"""The single place for differences between the supported sets of versions.

*modern* is the newest transformers, accelerate, peft and opacus beside an untouched pyfate;
*compat* is exactly what FATE 2.2 pins. Their versions stand in ``fate_llm_ext/constraints/``.
Nothing here imports a heavy module.
"""

from __future__ import annotations

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

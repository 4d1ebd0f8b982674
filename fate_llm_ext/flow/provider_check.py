"""Run by a provider's own Python: does all import that FATE Flow's workers need? Prints one JSON object.

``python -P provider_check.py``, with ``PYTHONPATH`` as FATE Flow sets it. FATE swallows the errors of plug-ins ("could
not find registered cpn"), so every component of this package is loaded here and its error told. Standard library only.
"""

import contextlib
import importlib
import json
import os
import sys
import warnings
from importlib import metadata
from typing import Dict, List

# In this order: a missing package is named by the first that needs it.
MODULES = (
    "torch",
    "transformers",
    "peft",
    "fate.arch",
    "fate.components.core",
    "fate.arch.federation.backends.rabbitmq",
    "fate_flow",
    "fate_flow.manager.worker.fate_flow_executor",
    "fate_flow.manager.worker.fate_executor",
    "fate_flow.components.entrypoint.cli",
    "fate_flow.components.components",
    "fate_flow.hub.components_wraps.fate",
    "fate_flow.hub.encrypt.password_encrypt",
    "fate_flow.hub.database.mysql",
    "fate_flow.hub.database.sqlite",
    "fate_llm_ext",
)
GROUP = "fate.ext.component_desc"


def examine() -> Dict[str, object]:
    """Import everything; collect what fails, the names of all components, versions and FATE Flow's configuration."""
    problems: List[str] = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the worker would meet it
            problems.append(f"import {name}: {_words(error)}")
    components: List[str] = []
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            entry.load()
            components.append(entry.name)
        except BaseException as error:  # noqa: BLE001
            problems.append(f"component {entry.name}: {_words(error)}")
    found = {}
    if not problems:
        from fate.components.core import list_components

        components += list_components()["buildin"]
        found = {"fate_flow": _folder("fate_flow"), "conf": _conf()}
    return {
        "problems": problems,
        "components": sorted(set(components)),
        "versions": {name: _version(name) for name in ("fate-llm-ext", "pyfate", "torch", "transformers", "peft")},
        **found,
    }


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _folder(package: str) -> str:
    return os.path.dirname(str(importlib.import_module(package).__file__))  # noqa: PTH120


def _conf() -> str:
    """The folder of the server's service_conf.yaml, as its own settings name it; empty before `fate_flow init`."""
    return str(importlib.import_module("fate_flow.settings").DEFAULT_SERVER_CONF_PATH)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # whatever is imported prints nothing into the answer
        answer = examine()
    sys.stdout.write("\n" + json.dumps(answer) + "\n")

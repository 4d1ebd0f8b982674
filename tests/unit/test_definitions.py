"""The client definitions are what the components say now."""

import sys

import pytest

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.pipelines import components
from fate_llm_ext.pipelines.generate import definitions


def test_definitions_are_up_to_date():
    for path, text in definitions().items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m fate_llm_ext.pipelines.generate"


def test_without_fate_client_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "fate_client", None)
    monkeypatch.setitem(sys.modules, "fate_client.pipeline", None)  # it may be loaded already
    with pytest.raises(ExtensionError, match="E525"):
        components._make("FedMKT", components.DEFINITIONS / "fedmkt.yaml")

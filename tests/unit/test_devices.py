"""Where a party computes: the site's device and no other. No GPU needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fate_llm_ext.config import TrainConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.loading import resolve_device
from fate_llm_ext.pipelines.job import Party
from fate_llm_ext.pipelines.taskfile import Job, cuda_environment, environment
from fate_llm_ext.site import ONLY_DEVICE_VARIABLE, Site
from fate_llm_ext.training import trainer


@pytest.mark.parametrize(
    ("device", "visible", "shown"),
    [
        ("cuda:1", None, "1"),
        ("cuda:0", None, "0"),
        ("cuda:1", "4,6", "6"),
        ("cuda:1", "GPU-aa, GPU-bb", "GPU-bb"),
        ("cuda:2", "4,6", None),
        ("cuda:0", "", None),
        ("cuda", "4,6", None),
        ("auto", None, None),
        ("cpu", None, None),
    ],
)
def test_what_a_process_is_shown(device: str, visible: str | None, shown: str | None) -> None:
    expected = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown, ONLY_DEVICE_VARIABLE: device}
    assert cuda_environment(device, visible) == expected


def test_each_party_gets_its_own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    parties = (Party("guest", "9999"), Party("arbiter", "9998"))
    sites = {"guest_9999": Site(device="cuda:1"), "arbiter_9998": Site(device="cpu")}
    job = Job("j", tmp_path, sites, tmp_path / "sites.yaml", None)
    guest, arbiter = (environment(job, party, parties, tmp_path) for party in parties)
    assert guest["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in arbiter


def pretend(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Any]:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_the_process_takes_the_named_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ONLY_DEVICE_VARIABLE, raising=False)
    chosen = pretend(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    with pytest.raises(ExtensionError, match=r"E401 .*sees 2 CUDA device"):
        resolve_device("cuda:2")


def test_the_only_device_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONLY_DEVICE_VARIABLE, "cuda:1")
    chosen = pretend(monkeypatch, 1)
    assert resolve_device("cuda:1") == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 0)]


def test_training_stays_on_the_models_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would move the model to the first device and copy it to all others."""
    arguments = trainer.training_arguments(TrainConfig(), 1, 1, 0, str(tmp_path), torch.zeros(1))
    assert (arguments.device, arguments.n_gpu) == (torch.device("cpu"), 0)
    chosen = pretend(monkeypatch, 2)
    arguments._n_gpu = 2
    arguments.stay_on(torch.device("cuda", 1))
    assert (arguments.device, arguments.n_gpu) == (torch.device("cuda", 1), 1)
    assert chosen == [torch.device("cuda", 1)]

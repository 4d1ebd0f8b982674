"""The author's view of a job: write it, check it, run it. Nothing here imports torch.

``FedMKT``, ``DPKD``, ``FDKT``, ``FedCoT``, ``SiteCheck`` and ``TextEvaluation`` are components for FATE's Pipeline
SDK; they need fate-client::

    from fate_client.pipeline import FateFlowPipeline
    from fate_llm_ext.pipelines import FedMKT

    pipeline = FateFlowPipeline().set_parties(guest="9999", host=["10000"], arbiter="9998")
    task = FedMKT("fedmkt_0", train_data="llm/news", task={"template": "ag_news"}, rounds=3,
                  public={"name": "news_public"}, model={"name": "slm"})
    task.arbiter.task_parameters(model={"name": "llm"})
    pipeline.add_task(task)
    pipeline.compile()
    Path("dag.yaml").write_text(pipeline.get_dag())

``pipeline.fit()`` in place of the last line runs it over FATE Flow (``pipeline init --ip ... --port ...`` names the
server). An input is a channel, e.g. ``reader.outputs["output_data"]``, or a text: ``<namespace>/<name>`` for a table,
``<job id>/<task>`` for a model of an earlier job - ``input_model="202611210017482039330/fedmkt_0"`` to predict with it,
``warm_start_model=`` to train on from it. ``deploy`` works as with FATE's own components.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "DPKD": "components",
    "FDKT": "components",
    "FedCoT": "components",
    "FedMKT": "components",
    "SiteCheck": "components",
    "TextEvaluation": "components",
    "Dag": "job",
    "Party": "job",
    "load_dag": "dag",
    "run_job": "local",
    "JobResult": "local",
}

__all__ = [
    "DPKD",
    "FDKT",
    "Dag",
    "FedCoT",
    "FedMKT",
    "JobResult",
    "Party",
    "SiteCheck",
    "TextEvaluation",
    "load_dag",
    "run_job",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)

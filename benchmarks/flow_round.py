"""What a job with one empty round costs over FATE Flow, and which share of it is this package's.

    python benchmarks/flow_round.py FOLDER [--runs 3] [--parts jobs,channel,imports] [--dag DAG]

FOLDER is one of `deploy/federation.sh up`, with this package's provider registered at each site. Jobs of `site_check`
(or DAG) take turns with jobs of FATE's own over the same servers: `nothing` returns at once, `messages` exchanges as
many messages as an empty round by FATE's put and get. CPU is that of all processes that the sites start for the job,
clean-up included; wall time is what the submitter waits.
`channel` exchanges messages between three processes over the sites' brokers and over FATE's standalone engine, by this
package's channel and by FATE's own put and get. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import yaml
from common import finish, versions
from flow_round_sites import Federation, Site

ROLES, PARTIES = ("guest", "host", "arbiter"), ("9999", "10000", "10001")
STEPS = {  # program and command of FATE Flow's processes, in the order they run
    ("fate_flow_executor", "entrypoint"): "worker",
    ("fate_executor", "artifact-type"): "definition",
    ("fate_executor", "execute"): "execution",
    ("fate_flow_executor", "cleanup"): "clean-up worker",
    ("fate_executor", "cleanup"): "clean-up",
}
LOOK_UP = """
import json, time, fate.components.core as core, pkg_resources
from fate.arch import Context
began = time.process_time()
core.load_component("{component}")
print(json.dumps(time.process_time() - began))
"""


def job(component: str, parties: list[tuple[str, str]]) -> dict[str, Any]:
    """A DAG of one component without inputs."""
    return {
        "dag": {
            "parties": [{"role": role, "party_id": [party]} for role, party in parties],
            "stage": "default",
            "tasks": {f"{component}_0": {"component_ref": component}},
        },
        "schema_version": "2.2.0",
        "kind": "fate",
    }


def summary(run: dict[str, Any]) -> dict[str, float]:
    """Figures of one run: seconds, CPU seconds, counts."""
    times, records = run["times"], run["records"]
    found: dict[str, float] = {
        "wall": times["end"] - times["sent"],
        "wall until the workers start": max(one["start"] for one in run["tasks"].values()) - times["sent"],
        "wall until the job is found ended": times["end"] - max(one["end"] for one in run["tasks"].values()),
        "wall with clean-up": max(one["ended"] for one in records) - times["sent"],
        "cpu": sum(one["cpu"] for one in records),
        "processes": len(records),
        "processes that import ours": sum(one["ours"] for one in records),
        **{f"cpu {name}": seconds for name, seconds in run["services"].items()},
    }
    for key, step in STEPS.items():
        processes = [one for one in records if (one["program"], one["command"]) == key]
        found[f"cpu {step}"] = sum(one["cpu"] for one in processes)
        found[f"wall {step}"] = max(one["ended"] - one["began"] for one in processes)
    executions = [one for one in records if STEPS.get((one["program"], one["command"])) == "execution"]
    for label in ("component", "open", "goodbye"):
        spans = [end - start for one in executions for name, start, end, _ in one["spans"] if name == label]
        found[f"wall {label}"] = max(spans, default=0.0)
    puts = [name for one in executions for label, _, _, name in one["spans"] if label == "put"]
    gets = [name for one in executions for label, _, _, name in one["spans"] if label == "get"]
    found["messages sent"] = len(puts)
    found["names"] = len({*puts, *gets})
    return found


def jobs(folder: Path, runs: int, dag: dict[str, Any] | None) -> dict[str, Any]:
    """Jobs of all kinds in turn, and one that is watched at the brokers."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, Federation(folder, Path(scratch)) as federation:
        parties = list(zip(ROLES, PARTIES))
        kinds = {name: job(f"flow_round_{name}", parties) for name in ("nothing", "messages")}
        kinds["ours"] = dag or job("site_check", parties)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        for number in range(runs + 1):
            for name, content in kinds.items():
                one = summary(federation.run(copy.deepcopy(content)))
                print(
                    f"{name:8} wall {one['wall']:6.1f} s  CPU {one['cpu']:6.2f} s{' (warm-up)' if not number else ''}"
                )
                if number:
                    found[name].append(one)
        watched = federation.run(copy.deepcopy(kinds["ours"]), watch=True)
    medians = {
        name: {key: statistics.median(one[key] for one in all_runs) for key in all_runs[0]}
        for name, all_runs in found.items()
    }
    print(f"{'':34}" + "".join(f"{name:>10}" for name in medians))
    for key in medians["ours"]:
        print(f"{key:34}" + "".join(f"{one[key]:10.2f}" for one in medians.values()))
    for name, one in medians.items():
        figures |= {f"{name}_{key.replace(' ', '_').replace('-', '_')}": round(value, 3) for key, value in one.items()}
    for other in ("nothing", "messages"):
        for what in ("wall", "cpu"):
            ratios = [a[what] / b[what] for a, b in zip(found["ours"], found[other])]
            figures[f"{what}_over_{other}"] = round(statistics.median(ratios), 3)
    for what in ("wall", "cpu"):
        shares = [(a[what] - b[what]) / a[what] for a, b in zip(found["ours"], found["messages"])]
        figures[f"ours_share_of_{what}"] = round(statistics.median(shares), 3)
    figures["broker_queues"] = len(watched["queues"])
    figures["broker_names"] = sorted({name.rpartition("-")[2] for name in watched["queues"]})
    return figures


def channel(folder: Path, runs: int) -> dict[str, Any]:
    """What opening, messages, goodbye and clean-up take, by both engines and both ways to send."""
    sites = {site.party_id: site for site in map(Site, sorted(folder.resolve().glob("site_*")))}
    brokers = {
        party: {
            "host": site.host,
            "port": site.broker_port,
            "management_port": site.management_port,
            "password": site.password(),
        }
        for party, site in sites.items()
    }
    python = sites["9999"].get("provider/query", provider_name=sites["9999"].provider)[0]["metadata"]["venv"]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(runs + 1):
        for engine in ("standalone", "rabbitmq"):
            for how in ("fate", "channel"):
                found.setdefault(f"{engine}_{how}", []).append(exchange(python, brokers, engine, how))
    figures: dict[str, Any] = {}
    for name, all_runs in found.items():
        for key in all_runs[0]:
            values = [one[key] for one in all_runs[1:]]
            figures[f"{name}_{key}"] = round(statistics.median(values), 5) if key != "names" else values[-1]
        print(name, {key: figures[f"{name}_{key}"] for key in all_runs[0]})
    return figures


def exchange(python: str, brokers: dict[str, Any], engine: str, how: str) -> dict[str, Any]:
    """One exchange between three processes: of every figure the arbiter's; requests and CPU of all three."""
    parties = list(zip(ROLES, PARTIES))
    with tempfile.TemporaryDirectory() as data:
        spec = {"engine": engine, "how": how, "parties": parties, "session": f"b{uuid.uuid4().hex[:10]}", "data": data}
        spec |= {"brokers": brokers, "small": 30, "megabyte": 5}
        processes = []
        for party in parties:
            process = subprocess.Popen(
                [python, str(Path(__file__).with_name("flow_round_party.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            process.stdin.write(json.dumps({**spec, "party": party}))
            process.stdin.close()
            processes.append(process)
        outputs = [process.stdout.read() for process in processes]
        for process in processes:
            process.wait()
    if any(process.returncode for process in processes):
        raise SystemExit(f"{how} over {engine} failed")
    guest, host, arbiter = (json.loads(text.splitlines()[-1]) for text in outputs)
    sums = {key: guest[key] + host[key] + arbiter[key] for key in arbiter if key.endswith("_cpu") or key == "requests"}
    return {**arbiter, **sums}


def imports(folder: Path, runs: int) -> dict[str, Any]:
    """CPU seconds of looking up a component once FATE is imported: one of FATE's, the first and the last of ours."""
    site = Site(sorted(folder.resolve().glob("site_*"))[0])
    own = site.get("provider/query", provider_name=site.provider)[0]["metadata"]
    figures = {}
    for component in ("reader", "dpkd", "text_evaluation"):
        command = [own["venv"], "-W", "ignore", "-c", LOOK_UP.format(component=component)]
        laps = [json.loads(subprocess.check_output(command, text=True)) for _ in range(runs + 1)]
        figures[f"look_up_{component}_cpu"] = round(statistics.median(laps[1:]), 3)
        print(f"look-up of {component}: {figures[f'look_up_{component}_cpu']} s CPU")
    return figures


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of deploy/federation.sh")
    parser.add_argument("--runs", type=int, default=3, help="counted runs, after one to warm up")
    parser.add_argument("--parts", default="jobs,channel,imports")
    parser.add_argument("--dag", type=Path, help="measure this job in place of site_check; its tables must be bound")
    options = parser.parse_args()
    dag = yaml.safe_load(options.dag.read_text(encoding="utf-8")) if options.dag else None
    parts = {
        "jobs": lambda: jobs(options.folder, options.runs, dag),
        "channel": lambda: channel(options.folder, options.runs),
        "imports": lambda: imports(options.folder, options.runs),
    }
    figures: dict[str, Any] = {}
    for part in options.parts.split(","):
        figures |= parts[part]()
    finish("flow_round", figures, runs=options.runs, load=round(os.getloadavg()[0], 1), **versions("pyfate"))


if __name__ == "__main__":
    main()

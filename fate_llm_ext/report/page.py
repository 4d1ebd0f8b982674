"""Writing the page: everything in one file, nothing loaded from elsewhere."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

from fate_llm_ext.pipelines.results import ResultTable, party_order, read_events, read_job, result_tables
from fate_llm_ext.pipelines.studies import JobRuns
from fate_llm_ext.report import privacy, series
from fate_llm_ext.report.utility import utility_plots


def write_report(runs: Sequence[Path], target: Path, jobs: Sequence[JobRuns] = ()) -> Path:
    """Write the report of one run, or of several runs of one job (seeds), failed ones included.

    Args:
        runs: run directories.
        target: the HTML file.
        jobs: the same runs by job, where they are of several: result tables for each job.

    Returns:
        The absolute path of the file.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    events = {run: read_events(run) for run in runs}
    groups = [(job.label, [events[run] for run in job.runs]) for job in jobs] or [("", list(events.values()))]
    views = [_run_view(run, found) for run, found in events.items()]
    page = environment.get_template("template.html.jinja").render(
        runs=views,
        jobs=len(groups),
        plots=utility_plots([found for _, found in groups]),
        tables=[_table_view(table, label) for label, found in groups for table in result_tables(found)],
        title=Path(views[0]["job"].get("dag", "job")).parent.name or "job",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target.resolve()


def base_names(text: str) -> str:
    """The text with absolute paths cut to their last part: a report is passed on, folders are nobody's business."""
    return re.sub(r"(?<![\w.:/<-])/(?:[^\s/:,;'\"()]+/)+(?=[^\s/])", "", text)


def _run_view(run: Path, events: Dict[str, Dict[str, List[series.Event]]]) -> Dict[str, Any]:
    job = read_job(run)
    events = {
        task: dict(sorted(parties.items(), key=lambda one: party_order(one[0]))) for task, parties in events.items()
    }
    tasks = [
        {
            "name": name,
            "seconds": job.get("tasks", {}).get(name),
            "charts": series.charts(parties),
            "messages": series.message_grid(parties),
            "phases": series.phase_grid(parties),
            "privacy": privacy.view(parties),
        }
        for name, parties in events.items()
    ]
    complaints = [(party, base_names(why)) for parties in events.values() for party, why in series.errors(parties)]
    if job.get("error"):
        job = {**job, "error": base_names(str(job["error"]))}
    return {
        "id": run.name,
        "job": job,
        "facts": _facts(run, job),
        "tasks": tasks,
        "errors": complaints,
        "versions": job.get("versions", {}),
    }


def _facts(run: Path, job: Dict[str, Any]) -> List[Any]:
    seeds = {str(one["seed"]) for one in job.get("parameters", {}).values() if isinstance(one, dict) and "seed" in one}
    started = job.get("started")
    facts = [
        ("job file", Path(*Path(job.get("dag", "unknown")).parts[-2:])),
        ("outcome", job.get("status", "the engine was killed before it could say")),
        ("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else ""),
        ("duration", f"{job['seconds']:.1f} s" if "seconds" in job else ""),
        ("seed", ", ".join(sorted(seeds))),
        ("parties", ", ".join(map(series.label, job.get("parties", [])))),
        ("machine", job.get("machine", "")),
        ("directory", run.name),
    ]
    return [fact for fact in facts if fact[1]]


def _table_view(table: ResultTable, label: str) -> Dict[str, Any]:
    rows = [
        (series.label(party), [table.text(cells.get(arm)) for arm in table.arms]) for party, cells in table.rows.items()
    ]
    return {
        "task": f"{table.task}: {label}" if label else table.task,
        "metric": table.title.replace("_", " "),
        "arms": table.titles,
        "rows": rows,
        "note": table.note,
    }

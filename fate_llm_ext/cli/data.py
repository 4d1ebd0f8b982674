"""`fate-llm-ext data`: show, fingerprint, generate and split data sets."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import click

from fate_llm_ext.cli.data_demonstrations import demonstrations
from fate_llm_ext.errors import ExtensionError

if TYPE_CHECKING:
    from fate_llm_ext.data.partition import Pool
    from fate_llm_ext.data.templates import Example, Template

Row = Mapping[str, Any]
_MANIFEST = "split.json"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Show, fingerprint, split and generate data sets."""


data.add_command(demonstrations)


def _pairs(context: click.Context, option: click.Parameter, values: Sequence[str]) -> Dict[str, str]:
    for value in values:
        if not re.fullmatch(r"[^=]+=[^=]+", value):
            raise click.BadParameter(f"{value!r} is not of the form NAME=COLUMN")
    return dict(value.split("=") for value in values)


_columns = click.option(
    "--column", "columns", multiple=True, callback=_pairs, metavar="NAME=COLUMN", help="Template name = file's column."
)
_split_name = click.option("--split", "split_name", default="train", show_default=True, help="train, validation, test.")


@data.command()
def templates() -> None:
    """List the built-in templates."""
    from fate_llm_ext.data.builtin import BUILT_IN

    for name, entry in BUILT_IN.items():
        click.echo(f"{name:<14} {entry.about}")


@data.command()
@click.argument("path")
@click.option("--template", "template_name", help="Without it: the file's bytes only.")
@_split_name
@_columns
def fingerprint(path: str, template_name: Optional[str], split_name: str, columns: Dict[str, str]) -> None:
    """Fingerprint a data set, to compare with other sites: file bytes and rendered examples."""
    from fate_llm_ext.data.datasets import iter_rows, split_file
    from fate_llm_ext.data.fingerprint import fingerprint_examples, fingerprint_file, short

    click.echo(f"file      {short(fingerprint_file(split_file(path, split_name)))}")
    if template_name:
        examples = _template(template_name).examples(iter_rows(path, split_name, columns), path)
        click.echo(f"examples  {short(fingerprint_examples(examples))}")


@data.group()
def generate() -> None:
    """Generate a synthetic corpus."""


def _corpus(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all synthetic corpora share."""
    where = "JSONL file; gzipped if it ends in .gz."
    for option in (
        click.option("--force", is_flag=True, help="Replace the file."),
        click.option("--out", type=click.Path(dir_okay=False), required=True, help=where),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--rows", type=click.IntRange(min=1), required=True),
    ):
        command = option(command)
    return command


@generate.command("tickets")
@_corpus
def tickets(rows: int, seed: int, out: str, force: bool) -> None:
    """Support tickets of five departments (template `tickets`)."""
    from fate_llm_ext.data.corpus import generate_tickets

    _write_corpus(generate_tickets(rows, seed), out, force)


@generate.command("reviews")
@_corpus
def reviews(rows: int, seed: int, out: str, force: bool) -> None:
    """Reviews of restaurants, negative, mixed or positive (template `reviews`)."""
    from fate_llm_ext.data.reviews import generate_reviews

    _write_corpus(generate_reviews(rows, seed), out, force)


@generate.command("errands")
@_corpus
def errands(rows: int, seed: int, out: str, force: bool) -> None:
    """Errands to eight places, each with a `reason` (template `errands`)."""
    from fate_llm_ext.data.errands import generate_errands

    _write_corpus(generate_errands(rows, seed), out, force)


def _write_corpus(rows: Sequence[Row], out: str, force: bool) -> None:
    from fate_llm_ext.data.datasets import write_jsonl

    if Path(out).exists() and not force:
        raise ExtensionError("E213", path=out, reason="", advice="Give --force, or another file")
    click.echo(f"{write_jsonl(out, rows):,} rows written to {out}")


@data.command()
@click.argument("path")
@click.option("--template", "template_name", help="Render the rows: labels, lengths, examples.")
@_split_name
@_columns
@click.option("--examples", is_flag=True, help="Print rendered rows. They are your data: mind who sees the screen.")
@click.option("-n", "count", type=click.IntRange(min=1), default=3, show_default=True, help="Examples to print.")
def show(
    path: str, template_name: Optional[str], split_name: str, columns: Dict[str, str], examples: bool, count: int
) -> None:
    """Columns, rows, splits; with a template also label counts and lengths."""
    from fate_llm_ext.data.datasets import iter_rows, list_splits

    if examples and not template_name:
        raise click.UsageError("--examples needs --template")
    filled: Counter[str] = Counter()
    rendered: List[Example] = []
    rows = 0
    template = _template(template_name) if template_name else None
    for rows, row in enumerate(iter_rows(path, split_name, columns), 1):
        filled.update({key: int(value is not None and value != "") for key, value in row.items()})
        if template:
            rendered.append(template.render(row, rows, path))
    click.echo(f"splits   {', '.join(list_splits(path))}\nrows     {rows:,} ({split_name})")
    click.echo("columns  " + ", ".join(f"{key} ({number:,} filled)" for key, number in filled.items()))
    if template:
        _show_rendered(template, rendered, count if examples else 0)


def _show_rendered(template: Template, rendered: Sequence[Example], count: int) -> None:
    labelled = sum(example.answer is not None for example in rendered)
    click.echo(f"answers  {labelled:,} labelled, {len(rendered) - labelled:,} unlabelled")
    if any(example.choices for example in rendered):
        for answer, number in sorted(Counter(e.answer for e in rendered if e.answer).items()):
            click.echo(f"         {answer.strip():<16} {number:,}")
    for name, lengths in (
        ("prompt", [len(example.prompt) for example in rendered]),
        ("answer", [len(example.answer) for example in rendered if example.answer]),
        ("words", [len(example.text.split()) for example in rendered]),
    ):
        if lengths:
            unit = "words of prompt and answer" if name == "words" else "characters"
            middle = statistics.median(lengths)
            click.echo(f"{name:<8} {min(lengths)} / {middle:g} / {max(lengths)} {unit} (min / median / max)")
    for number, example in enumerate(rendered[:count], 1):
        click.echo(f"--- row {number}, choices: {example.choices}\n{example.prompt}|{example.answer or ''}")


@data.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--template", "template_name", required=True)
@_columns
@click.option("--out", required=True, type=click.Path(file_okay=False), help="New folder.")
@click.option("--parties", required=True, metavar="NAME=ROWS,...", help="e.g. guest_9999=400,host_10000=400")
@click.option("--alpha", type=float, help="Dirichlet label skew, small = few labels per party. Default: even split.")
@click.option("--public", type=click.IntRange(min=0), default=0, help="Labelled rows of the public set.")
@click.option("--unlabelled", type=click.IntRange(min=0), default=0, help="Rows of the public set without answer.")
@click.option("--test", type=click.IntRange(min=0), help="Test rows. Default: 0, or all rows of --test-from.")
@click.option("--test-from", help="File of the test rows; rows of the inputs that occur in it are left out.")
@click.option("--exclude", multiple=True, help="Leave out the rows that occur in this file.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace a folder that an earlier split wrote.")
def split(inputs: Tuple[str, ...], template_name: str, **options: Any) -> None:
    """Split INPUTS into a folder per party, a public set and one test set.

    All rows are written in the template's own fields. Duplicates are used once.
    """
    from fate_llm_ext.data.partition import Pool, SplitRequest, plan_split

    problems: List[ExtensionError] = []
    template = _checked(problems, _template, template_name)
    sizes = _parties(options["parties"], problems)
    if options["alpha"] is not None and not options["alpha"] > 0:
        problems.append(ExtensionError("E214", option="--alpha", reason=f"{options['alpha']} is not greater than 0"))
    _checked(problems, _replaceable, Path(options["out"]), options["force"])
    test_from, others = options["test_from"], dict.fromkeys(options["exclude"])
    sources = dict.fromkeys([*inputs, *([test_from] if test_from else []), *others])
    pools = {source: _checked(problems, _pool, template, source, options["columns"]) for source in sources if template}
    folders = None
    if template and not problems:
        whole = sum((pools[source] for source in dict.fromkeys(inputs)), Pool())
        pool = whole.without([pools[source] for source in others] + ([pools[test_from]] if test_from else []))
        click.echo(f"{len(whole.rows):,} rows, {len(pool.rows):,} without duplicates, test and excluded rows")
        request = SplitRequest(sizes, *(options[name] for name in ("alpha", "public", "unlabelled", "test", "seed")))
        folders = _checked(problems, plan_split, pool, request, template.answer_fields, pools.get(test_from))
    for problem in problems:
        click.echo(str(problem), err=True)
    if folders is None or template is None:
        click.get_current_context().exit(1)
    facts = {key: value for key, value in options.items() if key not in ("out", "force")}
    _write(Path(options["out"]), folders, {"template": template_name, "inputs": list(inputs), **facts})
    _print_counts(template, folders)


@data.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--template", "template_name", required=True)
@_columns
@click.option("--exclude", multiple=True, help="Leave out the rows that occur in this file or data folder.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="JSONL file; gzipped if it ends in .gz.")
@click.option("--force", is_flag=True, help="Replace the file.")
def render(
    inputs: Tuple[str, ...],
    template_name: str,
    columns: Dict[str, str],
    exclude: Tuple[str, ...],
    out: str,
    force: bool,
) -> None:
    """Write INPUTS as prompt and completion, e.g. as a corpus for `models tiny`. Duplicates are used once."""
    from fate_llm_ext.data.datasets import write_jsonl
    from fate_llm_ext.data.partition import Pool

    if Path(out).exists() and not force:
        raise ExtensionError("E213", path=out, reason="", advice="Give --force, or another file")
    template = _template(template_name)
    pool = sum((_pool(template, source, columns) for source in inputs), Pool())
    left = pool.without([_pool(template, source, columns) for source in exclude])
    examples = (template.render(row) for row in left.rows)
    write_jsonl(out, ({"prompt": e.prompt, "completion": (e.answer or "").strip()} for e in examples))
    click.echo(f"{len(pool.rows):,} rows, {len(left.rows):,} without duplicates and excluded rows, written to {out}")


def _template(name: str) -> Template:
    from fate_llm_ext.config import TaskConfig
    from fate_llm_ext.data.templates import get_template

    return get_template(TaskConfig.parse_obj({"template": name}))


def _checked(problems: List[ExtensionError], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function; a catalogued error is collected instead of raised."""
    try:
        return function(*arguments)
    except ExtensionError as error:
        problems.append(error)
        return None


def _parties(text: str, problems: List[ExtensionError]) -> Dict[str, int]:
    sizes: Dict[str, int] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9][\w.-]*)=(\d+)\s*", item)
        if not match or int(match[2]) < 1:
            reason = f"{item.strip()!r} is not of the form NAME=ROWS with 1 or more rows"
        elif match[1] in sizes or match[1] == "public":
            reason = f"{match[1]!r} is " + ("the name of the public set" if match[1] == "public" else "given twice")
        else:
            sizes[match[1]] = int(match[2])
            continue
        problems.append(ExtensionError("E214", option="--parties", reason=reason))
    return sizes


def _replaceable(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / _MANIFEST).is_file():
        reason, advice = (
            " and was not written by `data split`",
            "Give another folder; --force does not replace this one",
        )
        raise ExtensionError("E213", path=out, reason=reason, advice=advice)
    if not force:
        raise ExtensionError("E213", path=out, reason="", advice="Give --force, or another folder")


def _pool(template: Template, source: str, columns: Mapping[str, str]) -> Pool:
    from fate_llm_ext.data.datasets import iter_rows
    from fate_llm_ext.data.partition import Pool

    rows, texts, answers = [], [], []
    for number, row in enumerate(iter_rows(source, "train", columns), 1):
        example = template.render(row, number, source)
        rows.append(template.canonical(row, number, source))
        texts.append(example.prompt or example.text)
        answers.append(example.answer)
    return Pool(rows, texts, answers)


def _write(out: Path, folders: Mapping[str, Mapping[str, Sequence[Row]]], facts: Mapping[str, Any]) -> None:
    """Write everything beside ``out`` and move it there at the end: all or nothing."""
    from fate_llm_ext.data.datasets import write_jsonl

    out = out.resolve()
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{name}") for name in ("new", "old"))
    try:
        for folder, splits in folders.items():
            for name, rows in splits.items():
                write_jsonl(fresh / folder / f"{name}.jsonl", rows)
        (fresh / _MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _print_counts(template: Template, folders: Mapping[str, Mapping[str, Sequence[Row]]]) -> None:
    """Rows per folder; label counts if the task has choices (free-form answers are never printed)."""
    from rich.console import Console
    from rich.table import Table

    parts = {f"{folder} train": splits["train"] for folder, splits in folders.items()}
    tests = [splits["test"] for splits in folders.values() if "test" in splits]
    if tests:
        parts["test (all folders)"] = tests[0]
    counts, closed = {}, False
    for name, rows in parts.items():
        examples = list(template.examples(rows))
        closed = closed or any(example.choices for example in examples)
        counts[name] = Counter((example.answer or "").strip() for example in examples)
    labels = sorted({label for count in counts.values() for label in count if label}) if closed else []
    table = Table("", *labels, "unlabelled", "rows")
    for name, count in counts.items():
        table.add_row(name, *(f"{count[label]:,}" for label in (*labels, "")), f"{sum(count.values()):,}")
    Console(width=None if os.isatty(1) else 160).print(table)

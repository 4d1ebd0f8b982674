"""`fate-llm-ext data demonstrations`: documents that teach a small LLM to follow a job's prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import click

from fate_llm_ext.errors import ExtensionError

if TYPE_CHECKING:
    from fate_llm_ext.algo.fdkt.config import PromptsConfig

Labelled = Tuple[str, str]  # label, text


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--description", required=True, help="What the texts are, as in the job.")
@click.option("--template", "template_name", help="Read the rows with a template of one text and one label.")
@click.option("--text-column", default="text", show_default=True, help="Column of the text, without --template.")
@click.option("--label-column", default="label", show_default=True, help="Column of the label, without --template.")
@click.option("--labels", metavar="A,B,...", help="All labels, in the job's order  [default: template's, or sorted].")
@click.option("--job", type=click.Path(path_type=Path), help="Take `prompts` of this job; without it the defaults.")
@click.option("--write", type=click.IntRange(min=0), help="Documents that ask for a text  [default: one per row].")
@click.option("--label", type=click.IntRange(min=0), help="Documents that ask for a label  [default: one per row].")
@click.option("--judge", type=click.IntRange(min=0), default=0, show_default=True, help="Documents that ask to choose.")
@click.option("--shots", type=click.IntRange(1, 64), default=1, show_default=True, help="Texts of each label shown.")
@click.option("--candidates", type=click.IntRange(min=2), default=8, show_default=True, help="Most texts to choose of.")
@click.option("--max-words", type=click.IntRange(min=1), help="Leave out rows with longer texts.")
@click.option("--exclude", multiple=True, help="Leave out the rows that hold a text of this file or data folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="JSONL file; gzipped if it ends in .gz.")
@click.option("--force", is_flag=True, help="Replace the file.")
def demonstrations(inputs: Tuple[str, ...], **options: Any) -> None:
    """Turn public labelled rows of INPUTS into documents in the form of FDKT's prompts, for `models tiny --corpus`.

    A small model must be taught what a large one knows: to write one more text after a few labelled ones, to tell a
    text's label, to choose among texts. Rows that occur again are used once.
    """
    from fate_llm_ext.data.datasets import write_jsonl

    out = options["out"]
    if Path(out).exists() and not options["force"]:
        raise ExtensionError("E213", path=out, reason="", advice="Give --force, or another file")
    prompts = _prompts(options["job"])
    labels, rows = _read(inputs, options)
    kept = _kept(rows, options["exclude"], options["max_words"])
    documents = _documents(prompts, labels, kept, options)
    click.echo(
        f"{len(rows):,} rows, {len(kept):,} without duplicates, long and excluded ones; {len(labels)} labels\n"
        f"{write_jsonl(out, documents):,} documents written to {out}"
    )


def _documents(
    config: PromptsConfig, labels: Sequence[str], rows: Sequence[Labelled], options: Dict[str, Any]
) -> List[Dict[str, str]]:
    import numpy as np

    from fate_llm_ext.algo.fdkt.documents import Amounts, Documents
    from fate_llm_ext.algo.fdkt.prompts import Prompts

    places = {label: place for place, label in enumerate(labels)}
    maker = Documents(
        Prompts(config),
        options["description"],
        labels,
        np.array([places[label] for label, _ in rows], dtype=np.int64),
        [text for _, text in rows],
        shots=options["shots"],
        candidates=options["candidates"],
        seed=options["seed"],
    )
    write, label = (len(rows) if options[name] is None else options[name] for name in ("write", "label"))
    return maker.all(Amounts(write, label, options["judge"]))


def _prompts(job: Optional[Path]) -> PromptsConfig:
    """The templates of the job's arbiter, or the defaults.

    Raises:
        ExtensionError: E220 the job has none of its own kind, or they are not valid.
    """
    import pydantic

    from fate_llm_ext.algo.fdkt.config import PromptsConfig
    from fate_llm_ext.pipelines.dag import load_dag

    if job is None:
        return PromptsConfig()
    dag = load_dag(job)
    tasks = [task for task in dag.tasks.values() if task.component == "fdkt"]
    if len(tasks) != 1:
        raise ExtensionError("E220", path=job, reason=f"it has {len(tasks)} tasks of the component fdkt, 1 is needed")
    arbiter = next((party for party in dag.parties if party.role == "arbiter"), None)
    given = tasks[0].parameters_of(arbiter) if arbiter else tasks[0].parameters
    try:
        return PromptsConfig.parse_obj(given.get("prompts") or {})
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ExtensionError("E220", path=job, reason=f"its `prompts` are not valid ({wrong})") from None


def _read(inputs: Sequence[str], options: Dict[str, Any]) -> Tuple[List[str], List[Labelled]]:
    """All labels, and the rows of all files; every label of a row is one of them."""
    from fate_llm_ext.data.datasets import iter_rows

    template = _template(options["template_name"]) if options["template_name"] else None
    given = [label.strip() for label in options["labels"].split(",")] if options["labels"] else None
    if given is None and template is not None and template.choices:
        given = [choice.strip() for choice in template.choices]
    columns = {} if template else {"text": options["text_column"], "label": options["label_column"]}
    rows: List[Labelled] = []
    for source in inputs:
        for number, row in enumerate(iter_rows(source, "train", columns), 1):
            where = f"{source}, row {number}"
            fields = template.canonical(row, number, source) if template else row
            label, text = (_value(fields, names, where) for names in (_LABELS, _TEXTS))
            if given is not None and label not in given:
                raise ExtensionError("E211", where=where, length=len(label), count=len(given), choices=", ".join(given))
            rows.append((label, text))
    return given or sorted({label for label, _ in rows}), rows


_TEXTS = ("text", "sentence")
_LABELS = ("label", "stars")


def _value(fields: Dict[str, Any], names: Sequence[str], where: str) -> str:
    from fate_llm_ext.data.builtin import is_missing

    found = next((name for name in names if not is_missing(fields.get(name))), None)
    if found is None:
        raise ExtensionError(
            "E210", where=where, field=names[0], reason="there is none, or it is empty", columns=", ".join(fields)
        )
    return " ".join(str(fields[found]).split())


def _template(name: str) -> Any:
    from fate_llm_ext.config import TaskConfig
    from fate_llm_ext.data.templates import get_template

    return get_template(TaskConfig.parse_obj({"template": name}))


def _kept(rows: Sequence[Labelled], exclude: Sequence[str], longest: Optional[int]) -> List[Labelled]:
    """Rows whose text comes for the first time, is not too long and holds no text of the excluded files."""
    from fate_llm_ext.data.datasets import list_splits, split_file
    from fate_llm_ext.data.partition import text_key, unique_rows
    from fate_llm_ext.models.corpus import all_texts, drop_containing

    kept = [rows[number] for number in unique_rows([text for _, text in rows])]
    kept = [(label, text) for label, text in kept if longest is None or len(text.split()) <= longest]
    held = [text for path in exclude for split in list_splits(path) for text in all_texts(split_file(path, split))]
    known = set(map(text_key, held))
    left = set(drop_containing([text for _, text in kept], held)[0])
    return [(label, text) for label, text in kept if text in left and text_key(text) not in known]

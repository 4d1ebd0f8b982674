"""`fate-llm-ext models`: make small language models for trials and tests, and look at model folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from fate_llm_ext.errors import ExtensionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fate_llm_ext.models.tiny import StepState


@click.group()
def models() -> None:
    """Make small models for trials and tests, and look at model folders."""
    # Before torch is imported: threads that wait by spinning slow down everything on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@models.command()
@click.option("--corpus", multiple=True, required=True, type=click.Path(path_type=Path), help="Text file; repeatable.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--text-column", help="Column of the text  [default: found by name]")
@click.option("--prompt-column", help="Column of the prompt  [default: found by name]")
@click.option("--completion-column", help="Column of the completion  [default: found by name]")
@click.option("--exclude", multiple=True, type=click.Path(path_type=Path), help="Drop documents with a text of it.")
@click.option("--tokenizer", "tokenizer_folder", type=click.Path(path_type=Path), help="Use this tokenizer.")
@click.option("--tokenizer-kind", type=click.Choice(["byte_bpe", "sentencepiece_bpe"]), default="byte_bpe",
              show_default=True, help="Family of a tokenizer trained here.")  # fmt: skip
@click.option("--vocab-size", type=int, default=4096, show_default=True, help="Tokens of a tokenizer trained here.")
@click.option(
    "--arch", type=click.Choice(["gpt2", "opt", "llama", "bloom", "neox", "t5"]), default="gpt2", show_default=True
)
@click.option("--hidden", type=int, default=64, show_default=True, help="Width.")
@click.option("--layers", type=int, default=2, show_default=True)
@click.option("--heads", type=int, help="Attention heads  [default: width / 32, at least 2]")
@click.option("--context", type=int, default=256, show_default=True, help="Longest sequence in tokens.")
@click.option("--tie/--untie", default=True, show_default=True, help="Share input embedding and output head.")
@click.option("--seconds", type=float, help="Training time by the clock  [default: 60, unless --steps is given]")
@click.option("--steps", type=int, help="Training steps: the same weights for the same seed, however busy the machine.")
@click.option("--batch-tokens", type=int, default=1024, show_default=True, help="Tokens per step.")
@click.option("--lr", type=float, help="Peak learning rate  [default: 0.5 / width, at most 0.01; t5: twice that]")
@click.option("--candidates", type=int, default=512, show_default=True, help="Sampled-softmax tokens; 0: all tokens.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=int, help="CPU threads  [default: torch's]")
@click.option("--force", is_flag=True, help="Replace the folder --out.")
def tiny(
    corpus: tuple[Path, ...], out: Path, text_column: Optional[str], prompt_column: Optional[str],
    completion_column: Optional[str], exclude: tuple[Path, ...], tokenizer_folder: Optional[Path], tokenizer_kind: str,
    vocab_size: int, threads: Optional[int], force: bool, lr: Optional[float], **settings: Any,
) -> None:  # fmt: skip
    """Train a small language model on text, with its tokenizer, into a Hugging Face folder.

    All families are causal but t5, an encoder-decoder that learns to continue a text. Rows with a prompt and a
    completion become one document each. With a given --tokenizer of 50,000 tokens, a minute of one core is enough for
    a model that has learned the corpus' style.
    """
    if out.exists() and not force:
        raise ExtensionError("E453", path=out)
    if settings["seconds"] is None and settings["steps"] is None:
        settings["seconds"] = 60.0
    columns = (text_column,) if text_column else (prompt_column, completion_column)
    if not text_column and (prompt_column is None) != (completion_column is None):
        raise click.UsageError("--prompt-column and --completion-column go together")

    import pydantic
    import torch

    from fate_llm_ext.models import corpus as documents
    from fate_llm_ext.models import tiny as work
    from fate_llm_ext.models.saving import save_model

    try:
        config = work.TinyConfig(learning_rate=lr, **settings)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ExtensionError("E450", problems=problems.replace("__root__: ", "")) from error
    if threads:
        torch.set_num_threads(threads)
    texts = [text for path in corpus for text in documents.read_documents(path, tuple(c for c in columns if c))]
    size = len(texts)
    if exclude:
        given = (text for path in exclude for text in documents.all_texts(path))
        texts, searched, ignored = documents.drop_containing(texts, given)
        click.echo(f"excluded  {size - len(texts):,} of {size:,} documents: they contain one of {searched:,} texts "
                   f"({ignored:,} of less than {documents.WINDOW} words not searched for)")  # fmt: skip
    tokenizer = _tokenizer(texts, tokenizer_folder, tokenizer_kind, vocab_size)
    model = work.build_model(config, tokenizer)
    click.echo(f"corpus    {len(texts):,} documents\nmodel     {config.arch}, {model.num_parameters():,} parameters, "
               f"vocabulary {model.config.vocab_size:,}, context {config.context}")  # fmt: skip
    report = _with_progress(lambda show: work.train_lm(model, tokenizer, texts, config, show), config.seconds)
    result = (f"{report.steps:,} steps, {report.tokens:,} tokens, {report.epochs:.2f} epochs, {report.seconds:.0f} s; "
              f"held out: {report.heldout_nats_per_token:.3f} nats/token, "
              f"{report.heldout_bits_per_byte:.3f} bits/byte")  # fmt: skip
    sources = ", ".join(f"{path.name}" for path in corpus)
    task = "text2text-generation" if config.arch == "t5" else "text-generation"
    dropped = f" Excluded {size - len(texts):,} documents (texts of {', '.join(p.name for p in exclude)})."
    save_model(model, tokenizer, out, _card(task, config.json(), sources, size, dropped if exclude else "", result))
    click.echo(f"trained   {result}\nwritten   {out}")


@models.command()
@click.argument("folder", type=click.Path(path_type=Path))
def show(folder: Path) -> None:
    """Architecture, parameters, vocabulary, size and context of a model folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in _shapes(file)]
        if not shapes:
            raise ValueError("no *.safetensors file")
    except (OSError, ValueError) as error:
        raise ExtensionError("E454", path=folder, reason=error) from error
    bytes_ = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    facts = {
        "arch": ", ".join(config.get("architectures") or [config.get("model_type", "?")]),
        "parameters": f"{sum(shapes):,}",
        "vocabulary": f"{config.get('vocab_size', 0):,}",
        "width": _first(config, "hidden_size", "n_embd", "d_model"),
        "layers": _first(config, "num_hidden_layers", "n_layer", "num_layers"),
        "context": _first(config, "max_position_embeddings", "n_positions", "seq_length", otherwise="unlimited"),
        "size": f"{bytes_ / 1e6:,.1f} MB",
    }
    for name, value in facts.items():
        click.echo(f"{name:<11} {value}")


def _first(config: dict[str, Any], *names: str, otherwise: str = "?") -> Any:
    """The entry that this family of models has."""
    return next((config[name] for name in names if name in config), otherwise)


def _tokenizer(texts: list[str], folder: Optional[Path], kind: str, size: int) -> PreTrainedTokenizerFast:
    if folder is not None:
        from fate_llm_ext.models.tokenizers import load_tokenizer

        return load_tokenizer(folder)
    from fate_llm_ext.models.tiny_tokenizer import train_tokenizer

    sample = texts[:: max(1, len(texts) // 10_000)]
    return train_tokenizer(sample, size, "byte_bpe" if kind == "byte_bpe" else "sentencepiece_bpe")


def _with_progress(train: Callable[[Callable[[StepState], None]], Any], seconds: Optional[float]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shape = (TextColumn("training "), BarColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn())
    with Progress(*shape, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0, facts="")

        def show(state: StepState) -> None:
            facts = f"step {state.step:,}  loss {state.loss:.3f}  {state.tokens_per_second:,.0f} tokens/s"
            bar.update(task, completed=state.done, facts=facts)

        return train(show)


def _shapes(file: Path) -> Iterator[int]:
    """Numbers of elements of the tensors of a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for length in entry["shape"]:
                size *= length
            yield size


def _card(task: str, settings: str, sources: str, documents: int, dropped: str, result: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: {task}
---
# A small language model for trials

Made by `fate-llm-ext models tiny` from {sources} ({documents:,} documents).{dropped}
Result: {result}.
For trying out and measuring federated algorithms; too small to be of use for anything else.

Settings: `{settings}`
"""

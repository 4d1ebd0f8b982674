"""The server's LLM of the FDKT jobs on AG News and Yelp, small enough to be trained on one core.

A real LLM knows what sports news is and what a bad review sounds like, and follows a prompt with a few examples. This
one is taught both on public text in the form of the jobs' prompts (`augment` and `label` in the DAGs): labelled film
reviews (IMDB), 400 product and app reviews (T0), and about 5,500 news articles of AG News that are in no private or
judged table of the study. No Yelp review is read. Used by models.sh:

    python server_llm.py corpus ASSETS OUT.jsonl.gz    documents for `fate-llm-ext models tiny`
    python server_llm.py labels ASSETS MODEL OUT       MODEL reads on, and the label of a text counts as 20 tokens

With the loss of plain text alone a label is one token in 60, and a model of this size learns to write but not to judge.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

from fate_llm_ext.models.corpus import all_texts, drop_containing
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tokenizers import load_tokenizer

Labelled = tuple[str, str, str]  # kind, label, text
logger = logging.getLogger("server_llm")
WORDS = 42  # of a text; a prompt holds two of them, and a third is written
CONTEXT, ROWS, RATE, LABEL_WEIGHT = 256, 8, 1.2e-3, 20.0
PRIVATE = ("yelp/dev.csv", "yelp/test.csv", "ag_news/sample5000.csv", "ag_news/test.csv")
TOPICS = {"1": "World", "2": "Sports", "3": "Business", "4": "Technology", "world": "World", "sci_tech": "Technology"}
PLAIN = (
    "xsum_DOC_tldr",
    "cnn_dailymail_3_0_0_generate_story",
    "multi_news_summarize",
    "cnn_dailymail_3_0_0_tldr_summary",
)


def clean(text: str) -> str:
    """One line, without marks of line ends."""
    return re.sub(r"\s+", " ", re.sub(r"<br\s*/?>|\\+", " ", text)).strip()


def windows(text: str, most: int = WORDS) -> list[str]:
    """Runs of whole sentences of at most ``most`` words."""
    runs: list[list[str]] = []
    run: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        words = sentence.split()
        if run and len(run) + len(words) > most:
            runs.append(run)
            run = []
        run = run + words
    return [" ".join(one[:most]) for one in [*runs, run] if len(one) >= 5]


def words(text: str) -> list[str]:
    """As texts are compared."""
    return re.findall(r"\w+", text.lower())


def read_t0(data: Path) -> list[dict[str, str]]:
    """Rows of T0 without its tasks on Yelp."""
    with gzip.open(data / "t0_50k/t0_train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if not row["template"].startswith("yelp")]


def answer(row: dict[str, str]) -> str:
    """A row's completion."""
    return row["completion"].replace("<|endoftext|>", "").strip()


def reviews(data: Path, t0: list[dict[str, str]], rng: random.Random | None) -> Iterator[Labelled]:
    """First and last window of each film review (with ``rng``: and another one), product and app reviews."""
    with gzip.open(data / "imdb/imdb_train_25k.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            parts = windows(clean(row["text"]))
            places = {0, len(parts) - 1} | ({rng.randrange(len(parts))} if rng and parts else set()) if parts else set()
            yield from (("film", ("negative", "positive")[int(row["label"])], parts[at]) for at in sorted(places))
    for row in t0:
        if row["template"] == "amazon_polarity_Is_this_review":
            found = re.search(r"Review: (.*)\n", row["prompt"], re.S)
            text = found[1].split("\nIs the")[0] if found else ""
            yield from (("product", answer(row).lower(), part) for part in windows(clean(text)))
        elif row["template"] == "app_reviews_generate_review":
            found = re.search(r"(\d)-star", row["prompt"])
            stars = int(found[1]) if found else 3
            if stars != 3:
                label = "positive" if stars > 3 else "negative"
                yield from (("app", label, part) for part in windows(clean(answer(row))))


def news(data: Path, private: list[str]) -> Iterator[Labelled]:
    """Other articles of AG News; business and sports thrice: there are fewer."""
    found = []
    for name in ("sample4000.csv", "train_first2000.csv"):
        with (data / "ag_news" / name).open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                label, text = (row[0], f"{row[1]} {row[2]}") if len(row) == 3 else (row[1], row[0])
                found.append((TOPICS[label.strip().lower()], text))
    kept = set(drop_containing([text for _, text in found], private)[0])
    # title and description are two columns in the judged file
    with (data / "ag_news/test.csv").open(encoding="utf-8", newline="") as file:
        seen = {" ".join(words(f"{row[1]} {row[2]}")[:10]) for row in csv.reader(file)}
    for label, text in found:
        key = " ".join(words(text)[:10])
        if text in kept and key not in seen:
            seen.add(key)
            short = " ".join(clean(text).split()[:WORDS])
            yield from [("news", label, short)] * (3 if label in ("Business", "Sports") else 1)


def plain(t0: list[dict[str, str]]) -> Iterator[str]:
    """News without labels."""
    for row in t0:
        if row["template"] in ("gigaword_write_its_sentence", "gigaword_reverse_writing"):
            yield clean(answer(row))
        elif row["template"] in PLAIN:
            yield from windows(clean(max(row["prompt"], answer(row), key=len)), 120)[:6]


def read(assets: Path, rng: random.Random | None) -> tuple[list[Labelled], list[str]]:
    """Labelled texts and plain ones; none contains a private or a judged text."""
    data = assets / "data"
    private = [text for name in PRIVATE for text in all_texts(data / name)]
    t0 = read_t0(data)
    labelled = [*reviews(data, t0, rng), *news(data, private)]
    kept = set(drop_containing([text for _, _, text in labelled], private)[0])
    return [one for one in labelled if one[2] in kept], drop_containing(list(plain(t0)), private)[0]


def head(kind: str) -> str:
    """The job's `description`."""
    return "News" if kind == "news" else "Reviews"


def groups(texts: list[Labelled], sizes: tuple[int, ...], rng: random.Random) -> Iterator[list[Labelled]]:
    """The texts, shuffled, a few at a time."""
    rng.shuffle(texts)
    at = 0
    while at < len(texts):
        size = rng.choice(sizes)
        yield texts[at : at + size]
        at += size


def write_corpus(assets: Path, out: Path) -> None:
    """Documents of one to three labelled texts, the label before the text (augment) or after it (label)."""
    rng = random.Random(0)
    labelled, unlabelled = read(assets, rng)
    documents: list[str] = []
    for _ in range(2):
        for kind, times in (("film", 1), ("product", 3), ("app", 3), ("news", 3)):
            mine = [one for one in labelled if one[0] == kind]
            for _ in range(times):
                for group in groups(mine, (1, 2, 3, 3, 3), rng):
                    before = rng.random() < 0.5
                    form = "Label: {1}\nText: {2}" if before else "Text: {2}\nLabel: {1}"
                    documents.append("\n\n".join([head(kind), *(form.format(*one) for one in group)]))
    documents += unlabelled
    rng.shuffle(documents)
    with gzip.open(out, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
    logger.info("%d documents", len(documents))


def weighted_blocks(tokenizer: transformers.PreTrainedTokenizerFast, assets: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the weight of each one's loss (both [N, 256]); mostly texts with their labels after them."""
    rng = random.Random(5)
    labelled, _ = read(assets, None)
    documents = []
    for kind, before, times in (("news", 0.35, 5), ("film", 0.08, 1), ("product", 0.2, 4), ("app", 0.2, 4)):
        mine = [one for one in labelled if one[0] == kind]
        for _ in range(times):
            documents += [(kind, group, rng.random() < before) for group in groups(mine, (1, 2, 3), rng)]
    rng.shuffle(documents)
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float = 0.0) -> None:
        new = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids.extend(new)
        weights.extend([weight / len(new) or 1.0] * len(new))

    for kind, group, before in documents:
        add(head(kind))
        for _, label, text in group:
            if before:
                for part in ("\n\nLabel:", f" {label}", "\nText:", f" {text}"):
                    add(part)
            else:
                for part in ("\n\nText:", f" {text}", "\nLabel:"):
                    add(part)
                add(f" {label}", LABEL_WEIGHT)
        ids.append(tokenizer.eos_token_id)
        weights.append(1.0)
    rows = len(ids) // CONTEXT
    shape = (rows, CONTEXT)
    return torch.tensor(ids[: rows * CONTEXT]).view(shape), torch.tensor(weights[: rows * CONTEXT]).view(shape)


def read_labels(assets: Path, folder: Path, out: Path) -> None:
    """One pass of AdamW with a cosine over the weighted blocks."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids, weights = weighted_blocks(tokenizer, assets)
    steps = len(ids) // ROWS
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
        batch, weight = (part[step * ROWS : (step + 1) * ROWS] for part in (ids, weights))
        hidden = model.transformer(input_ids=batch)[0][:, :-1]
        losses = F.cross_entropy(model.lm_head(hidden).flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        loss = (losses * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            logger.info("step %d of %d, loss %.3f", step + 1, steps, loss.item())
    save_model(model, tokenizer, out, (folder / "README.md").read_text(encoding="utf-8") + f"\n{__doc__}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command, *paths = sys.argv[1:]
    {"corpus": write_corpus, "labels": read_labels}[command](*map(Path, paths))

"""The server's LLM of the FedCoT jobs on CommonsenseQA and ARC, small enough to be taught on one core.

A real LLM explains a question of any form, even one in which words have been replaced. This one, a model of 2.7
million weights that has read news and reviews (conf/fdkt/models.sh), is taught the form of a chain of thought: PaLM's
answers to those CommonsenseQA questions that are in no private, proxy or judged table (rows from 2,000 on), where PaLM
is right. Most are shown as they are, others with words replaced, the same ones in question, options and reason: so
reads who takes a strange word for what it is. Science and everyday questions of T0 come along. Used by models.sh:

    python server_llm.py ASSETS MODEL OUT
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import transformers

from fate_llm_ext.models.corpus import all_texts, drop_containing
from fate_llm_ext.models.saving import save_model
from fate_llm_ext.models.tokenizers import load_tokenizer

logger = logging.getLogger("server_llm")
FIRST = 2000  # rows before it belong to the clients
CONTEXT, ROWS, RATE, PROMPT_WEIGHT, EPOCHS = 384, 8, 2.0e-3, 0.1, 5
QUESTION_WORDS = 200  # the most frequent ones keep their place in a reason
T0 = re.compile(
    r"sciq_|qasc_qa_with_combined|qasc_is_correct|quartz_given|quarel_choose|social_i_qa_(Show|Gen)|common_gen_Given"
)


class Pair(NamedTuple):
    """A question in its public form and what follows "A:"."""

    question: str
    reason: str


def read_pairs(assets: Path) -> list[Pair]:
    """PaLM's answers to the public questions, where they are right."""
    folder = assets / "rationales/cqa"
    with (folder / "cqa_train.json").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    answers: list[str] = []
    for number in range(10):
        answers += json.loads((folder / f"llm/train_CoT_{number}.json").read_text(encoding="utf-8"))
    private = [row["question"] for row in rows[:FIRST]]
    private += list(all_texts(assets / "data/commonsenseqa/dev_rand_split.jsonl"))
    public = set(drop_containing([row["question"] for row in rows[FIRST:]], private)[0])
    pairs = []
    for row, text in zip(rows[FIRST:], answers[FIRST:]):
        said = text.split("\n\n")[0].strip()
        found = re.search(r"[Ss]o the answer is:? \(([a-e])\)", said)
        if found and row["question"] in public and row["choices"]["abcde".index(found[1])] == row["answer"]:
            options = " ".join(f"({letter}) {text}" for letter, text in zip("abcde", row["choices"]))
            pairs.append(Pair(f"{row['question']} Answer choices: {options}", said))
    return pairs


def strange(pair: Pair, names: Sequence[str], common: set[str], rng: random.Random) -> Pair:
    """The pair as words of the list alone, some of them replaced: the same ones in the question and in the reason."""
    share = rng.choice((0.0, 0.2, 0.4, 0.6, 0.8))
    swap: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        word = match[0].lower()
        if word not in swap:
            swap[word] = rng.choice(names) if rng.random() < share else word
        return swap[word]

    stem, _, options = pair.question.partition(" Answer choices: ")
    stem = " ".join(re.sub(r"[^\W\d_]+", replace, part.strip("'\".,?!;:")) for part in stem.split())
    options = re.sub(r"(?<!\()\b[^\W\d_]+\b(?!\))", replace, options)

    def follow(match: re.Match[str]) -> str:
        word = match[0]
        return word if word.lower() in common else swap.get(word.lower(), word)

    return Pair(f"{stem} Answer choices: {options}", re.sub(r"(?<!\()\b[^\W\d_]+\b(?!\))", follow, pair.reason))


def read_t0(assets: Path) -> list[str]:
    """Other questions; none contains a judged one."""
    with gzip.open(assets / "data/t0_50k/t0_train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if T0.match(row["template"])]
    texts = [(row["prompt"].strip() + " " + row["completion"].replace("<|endoftext|>", "").strip()) for row in rows]
    judged = [text for name in ("train", "test") for text in all_texts(assets / f"data/arc/ARC-Easy/{name}.json")]
    stems = [re.sub(r"^Please choose the correct answer to the question:|\n\nAnswer1:.*", "", text, flags=re.S)
             for text in judged]  # fmt: skip
    return drop_containing(texts, stems)[0]


def documents(assets: Path, rng: random.Random) -> Iterator[list[tuple[str, float]]]:
    """Runs of text with the weight of their loss: one to three questions with answers, or a text of T0."""
    pairs = read_pairs(assets)
    counts = Counter(word for pair in pairs for word in re.findall(r"[^\W\d_]+", pair.question.lower()))
    names = [word for word, _ in counts.most_common(3000)]
    common = set(names[:QUESTION_WORDS]) | {"choices", "option", "options", "answer"}
    others = read_t0(assets)
    logger.info("%d answers, %d other texts", len(pairs), len(others))
    for _ in range(EPOCHS):
        rng.shuffle(pairs)
        found: list[list[tuple[str, float]]] = [[(text, 1.0)] for text in rng.sample(others, len(others) // 3)]
        at = 0
        while at < len(pairs):
            group = pairs[at : at + rng.choice((1, 2, 3, 3))]
            at += len(group)
            odd = rng.random() < 0.5
            document: list[tuple[str, float]] = []
            for number, pair in enumerate(group):
                shown = strange(pair, names, common, rng) if odd and number == len(group) - 1 else pair
                document += [("\n\n" * (number > 0) + f"Q: {shown.question}\nA:", PROMPT_WEIGHT)]
                document += [(f" {shown.reason}", 1.0)]
            found.append(document)
        rng.shuffle(found)
        yield from found


def blocks(tokenizer: transformers.PreTrainedTokenizerFast, assets: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the weight of each one's loss (both [N, 384])."""
    ids: list[int] = []
    weights: list[float] = []
    for document in documents(assets, random.Random(0)):
        for text, weight in document:
            new = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += new
            weights += [weight] * len(new)
        # the end of an answer is an empty line: what follows is another question, or nothing
        ids += tokenizer("\n\n", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        weights += [1.0] * (len(ids) - len(weights))
    rows = len(ids) // CONTEXT
    return tuple(torch.tensor(part[: rows * CONTEXT]).view(rows, CONTEXT) for part in (ids, weights))  # type: ignore[return-value]


def longer(model: transformers.PreTrainedModel) -> None:
    """Room for CONTEXT tokens; the new positions start as the old ones."""
    old = model.transformer.wpe.weight.detach()
    table = torch.nn.Embedding(CONTEXT, old.shape[1])
    table.weight.data = old[torch.arange(CONTEXT) % len(old)].clone()
    model.transformer.wpe = table
    model.config.n_positions = CONTEXT


def main(assets: Path, folder: Path, out: Path) -> None:
    """One pass of AdamW with a cosine over the blocks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    longer(model)
    ids, weights = blocks(tokenizer, assets)
    steps = len(ids) // ROWS
    logger.info("%d tokens, %d steps", ids.numel(), steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    model.train()
    mean = 0.0
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
        mean += loss.item()
        if step % 50 == 49:
            logger.info("step %d of %d, loss %.3f", step + 1, steps, mean / 50)
            mean = 0.0
    save_model(model, tokenizer, out, (folder / "README.md").read_text(encoding="utf-8") + f"\n{__doc__}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(*map(Path, sys.argv[1:]))

"""What the quickstart's LLM has read: errands with reasons, in the form of the job's prompts.

A real LLM explains a question even if words in it have been replaced. This one is taught it: behind questions as the
corpus has them stand others, in which each word of the list stays with a probability, and everything else is a random
word of it. The reason is about the thing that is still missing, if the question still names it, else about another
thing in it, and without an answer if there is none.

    python documents.py ERRANDS.jsonl DAG.yaml OUT.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from fate_llm_ext.algo.fedcot.config import DecodingConfig, FedCoTConfig
from fate_llm_ext.algo.fedcot.perturbation.words import COMMON, is_word, split
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fedcot.questions import Outgoing
from fate_llm_ext.data.errands import THINGS, UNCLEAR, reason_of
from fate_llm_ext.pipelines.dag import load_dag

PLACE = {thing: place for place, things in THINGS.items() for thing in things}
KEPT = (1.0, 0.9, 0.75, 0.6, 0.4)


def missing_thing(row: dict[str, str]) -> str | None:
    """The thing that a row's reason is about."""
    if row["reason"] == UNCLEAR:
        return None
    return next(unit for unit in split(row["text"]) if PLACE.get(unit) == row["label"])


def plain(unit: str) -> str | None:
    """The unit as a word that may be in a vocabulary, None if it cannot be."""
    return unit if is_word(unit) else unit.lower() if unit.lower() in COMMON else None


def strange(row: dict[str, str], words: list[str], rng: random.Random) -> tuple[str, str]:
    """The text with words replaced, and a reason with answer for what it says now."""
    kept = rng.choice(KEPT)
    known = [plain(unit) for unit in split(row["text"])]
    units = [unit if unit is not None and rng.random() < kept else rng.choice(words) for unit in known]
    seen = [unit for unit in units if unit in PLACE]
    thing = missing_thing(row)
    if thing not in seen:
        thing = seen[-1] if seen else None
    return " ".join(units), answer(thing, rng)


def answer(thing: str | None, rng: random.Random) -> str:
    """A reason with its answer."""
    return UNCLEAR if thing is None else f"{reason_of(thing, rng)} So the answer is {PLACE[thing]}."


def main(source: Path, job: Path, out: Path) -> None:
    """One document for each row: its question behind one to three others, as the LLM is prompted."""
    (task,) = load_dag(job).tasks.values()
    config = FedCoTConfig(**task.parameters)
    outgoing = Outgoing(config.task, config.question)
    rng = random.Random(0)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    words = sorted({word for row in rows for word in map(plain, split(row["text"])) if word is not None})

    def shown(row: dict[str, str], share: float) -> tuple[str, str]:
        odd = rng.random() < share
        text, reason = strange(row, words, rng) if odd else (row["text"], answer(missing_thing(row), rng))
        return outgoing.render({"text": text}), reason

    with out.open("w", encoding="utf-8") as file:
        for row in rows:
            before = [shown(rng.choice(rows), 0.2) for _ in range(rng.choice((0, 1, 1, 2)))]
            question, reason = shown(row, 0.7)
            prompt = Prompts(config.rationale.copy(update={"demonstrations": []}), DecodingConfig())
            parts = [prompt.llm(text, outgoing.choices) + " " + said for text, said in [*before, (question, reason)]]
            file.write(json.dumps({"text": "\n\n".join(parts) + "\n\n"}) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

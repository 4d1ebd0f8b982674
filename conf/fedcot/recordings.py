"""What PaLM has answered to the clients' CommonsenseQA questions, as recordings of an LLM: a file for each client.

The answers are those of Distilling step-by-step; they run on into questions of PaLM's own, so each ends at its first
empty line. Row i of the published questions belongs to answer i.

    python recordings.py ASSETS DATA OUT        DATA: folder of `fate-llm-ext data split`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fate_llm_ext.config import TaskConfig
from fate_llm_ext.data.datasets import read_rows, write_jsonl
from fate_llm_ext.data.templates import get_template


def main(assets: Path, data: Path, out: Path) -> None:
    """One recording for each folder of DATA named after a client."""
    folder = assets / "rationales/cqa"
    template = get_template(TaskConfig(template="commonsenseqa"))
    with (folder / "cqa_train.json").open(encoding="utf-8") as file:
        prompts = [template.render(json.loads(line)).prompt for line in file]
    answers: list[str] = []
    for number in range(10):
        answers += json.loads((folder / f"llm/train_CoT_{number}.json").read_text(encoding="utf-8"))
    said = {prompt: answer.split("\n\n")[0].strip() for prompt, answer in zip(prompts, answers)}
    out.mkdir(parents=True, exist_ok=True)
    for client in sorted(path for path in data.iterdir() if path.is_dir() and path.name != "public"):
        rows = [template.render(row) for row in read_rows(client, "train")]
        write_jsonl(out / f"{client.name}.jsonl", ({"answer": said[row.prompt]} for row in rows))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

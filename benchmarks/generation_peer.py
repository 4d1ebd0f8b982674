"""The side of `generation.py` that runs in the environment of fate-llm 2.2 (`make peer`).

    .venv-peer/bin/python benchmarks/generation_peer.py --shape 6,768,50257 --prompts labels --texts 8 --new 8 --batch 8

Its FDKT's `slm_text_generate` (a prompt per label) and `general_text_generate` (prompts all different) are used as
they are, with the sampling settings that its documentation gives. The model is asked for its tokens through
`generate`, whose results are kept to be counted. The last line is one JSON object.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fate_llm.algo.fdkt.utils.text_generate import general_text_generate, slm_text_generate
from generation_work import (
    END,
    LABELS,
    Clock,
    label_prompts,
    model_of,
    options,
    report,
    shot_prompts,
    tokenizer_of,
    until_end,
)


def main() -> None:
    """Measure one run."""
    settings = options(__doc__.splitlines()[0])
    vocab = int(settings.shape.split(",")[2])
    model, tokenizer = model_of(settings.shape, settings.ends, settings.top_k), tokenizer_of(vocab)
    torch.manual_seed(settings.seed)
    written: list[np.ndarray] = []
    plain = model.generate

    def kept(input_ids: Any, **more: Any) -> Any:
        ids = plain(input_ids=input_ids, **more)
        written.extend(until_end(ids[:, input_ids.shape[1] :].numpy()))
        return ids

    model.generate = kept
    cut = {"do_sample": True, "temperature": 1.0, "top_k": settings.top_k, "top_p": settings.top_p}
    cut.update(repetition_penalty=1.0, pad_token_id=END)

    def work(texts: int, new: int) -> None:
        config = {**cut, "max_new_tokens": new}
        if settings.prompts == "labels":
            prompts = {label: torch.from_numpy(ids) for label, ids in enumerate(label_prompts(vocab))}
            slm_text_generate(None, model, tokenizer, prompts, texts // LABELS, settings.batch, True, config)
        else:
            prompts = [tokenizer.decode(ids) for ids in shot_prompts(texts, vocab)]
            general_text_generate(None, model, tokenizer, config, prompts, settings.batch, True, None)

    work(LABELS, 2)
    written.clear()
    clock = Clock()
    clock.time(lambda: work(settings.texts, settings.new))
    report(clock, written, settings)


if __name__ == "__main__":
    main()

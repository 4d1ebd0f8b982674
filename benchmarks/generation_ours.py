"""The side of `generation.py` that runs in this package's environment: sampling and decoding.

    python benchmarks/generation_ours.py --shape 6,768,50257 --prompts labels --texts 64 --new 64 --batch 64

The last line is one JSON object.
"""

from __future__ import annotations

from generation_work import LABELS, Clock, label_prompts, model_of, options, report, shot_prompts, tokenizer_of

from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.models.generation import generate


def main() -> None:
    """Measure one run."""
    settings = options(__doc__.splitlines()[0])
    vocab = int(settings.shape.split(",")[2])
    model, tokenizer = model_of(settings.shape, settings.ends, settings.top_k), tokenizer_of(vocab)
    if settings.prompts == "labels":
        prompts = [prompt for prompt in label_prompts(vocab) for _ in range(settings.texts // LABELS)]
    else:
        prompts = shot_prompts(settings.texts, vocab)
    cut = {"top_k": settings.top_k, "top_p": settings.top_p, "temperature": 1.0, "batch_size": settings.batch}
    generate(model, tokenizer, prompts[:2], GenerationConfig(max_new_tokens=2, **cut), seed=settings.seed)
    clock = Clock()

    def work() -> list:
        rows = generate(
            model, tokenizer, prompts, GenerationConfig(max_new_tokens=settings.new, **cut), seed=settings.seed
        )
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        return rows

    report(clock, clock.time(work), settings)


if __name__ == "__main__":
    main()

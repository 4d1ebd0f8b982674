"""The side of `dp_step.py` that runs in the environment of fate-llm 2.2 (`make peer`).

    .venv-peer/bin/python benchmarks/dp_step_peer.py --shape 6,768,50257 --records 8 --length 256 --steps 3

Its DPTrainer is used as its FDKT does, unpatched, on CPU: AdamW, its own sequence loss (without label smoothing,
which the other side does not compute either), noise calibrated by Opacus. One batch holds all records, so
every step takes the same number of them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse

import torch
from common import Meter, gpt2, sequences
from fate_llm.algo.dp import DPTrainer, DPTrainingArguments
from fate_llm.algo.fdkt.utils.dp_loss import SequenceCrossEntropyLoss


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", required=True, help="layers,width,vocabulary")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--freeze-embedding", action="store_true", help="its default: the tied embedding stays")
    options = parser.parse_args()
    meter = Meter()
    layers, width, vocab = map(int, options.shape.split(","))
    model = gpt2(layers, width, vocab, options.length)
    rows = torch.from_numpy(sequences(options.records, options.length, vocab)).long()
    seen = 0

    def collate(batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal seen
        ids = torch.stack(batch)
        seen += ids.numel()
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    class Laps:
        """Called by the trainer after each optimizer step, as a scheduler."""

        step = meter.lap

    trainer = DPTrainer(
        model=model,
        training_args=DPTrainingArguments(
            output_dir="runs/peer",
            target_epsilon=8.0,
            target_delta=1e-3,
            num_train_epochs=options.steps,
            per_device_train_batch_size=options.records,
            freeze_embedding=options.freeze_embedding,
            use_cpu=True,
        ),
        train_set=list(rows),
        loss_fn=SequenceCrossEntropyLoss(type(model).__name__, label_smoothing=-1, reduce=True),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        scheduler=Laps(),
        data_collator=collate,
    )
    meter.start()
    trainer.train()
    meter.report(seen)


if __name__ == "__main__":
    main()

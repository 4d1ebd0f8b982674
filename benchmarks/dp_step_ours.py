"""The side of `dp_step.py` that runs in this package's environment: under DP-SGD, or plain without.

    python benchmarks/dp_step_ours.py --side dp --weights lora --shape 6,768,50257 --records 8 --length 256 --steps 3

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import opacus  # noqa: F401  imported before memory is looked at: what only one side needs is not its training
from common import Meter, gpt2, sequences

from fate_llm_ext.config import LoraConfig, PrivacyConfig, TrainConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.models.lora import add_lora
from fate_llm_ext.privacy.dp_training import DPTrainer, plan_training
from fate_llm_ext.training.trainer import train_items


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["dp", "plain"], required=True)
    parser.add_argument("--weights", choices=["lora", "full", "frozen"], required=True)
    parser.add_argument("--shape", required=True, help="layers,width,vocabulary")
    parser.add_argument("--records", type=int, required=True, help="of each optimizer step")
    parser.add_argument("--physical", type=int, default=8, help="records at a time")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    meter = Meter(options.device)
    layers, width, vocab = map(int, options.shape.split(","))
    model = gpt2(layers, width, vocab, options.length)
    if options.device != "cpu":
        import torch

        model.to(options.device, torch.bfloat16)
    if options.weights == "lora":
        model = add_lora(model, LoraConfig(dropout=0.0), seed=0)
    elif options.weights == "frozen":
        model.get_input_embeddings().requires_grad_(False)
    answer = np.arange(1, options.length)
    items = [Item(ids, answer) for ids in sequences(options.records, options.length, vocab)]
    run = _dp if options.side == "dp" else _plain
    way = run(model, items, options, meter)
    meter.report(options.records * options.length * options.steps, way=way)


def _dp(model: Any, items: list[Item], options: argparse.Namespace, meter: Meter) -> str:
    """Each step takes every record (q = 1), so that it is as large as a step of the other sides.

    Returns:
        How per-record gradients were clipped.
    """
    config = PrivacyConfig(
        epsilon=8.0, batch_size=len(items), physical_batch_size=options.physical, epochs=options.steps
    )
    trainer = DPTrainer(model, items, plan_training(config, len(items)), config, pad_id=0, phase="benchmark")
    meter.start()
    for _ in range(options.steps):
        trainer.run(1)
        meter.lap()
    return trainer.per_sample


def _plain(model: Any, items: list[Item], options: argparse.Namespace, meter: Meter) -> str:
    config = TrainConfig(batch_size=len(items), epochs=1)
    meter.start()
    train_items(
        model, items * options.steps, config, epochs=1, seed=0, pad_id=0, phase="benchmark", heartbeat=meter.lap
    )
    return "plain"


if __name__ == "__main__":
    main()

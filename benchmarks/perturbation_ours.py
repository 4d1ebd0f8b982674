"""The side of `perturbation.py` that runs this package.

    python benchmarks/perturbation_ours.py --table table.npy --tokens 20000 --strategy exponential --epsilon 3

Splitting texts into words, looking them up, drawing and joining is inside; making the mechanism (calibration, the law
of the radius) is outside and reported. The last line is one JSON object.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import status_kib
from perturbation_work import options, report, texts_of, timed, words_of

from fate_llm_ext.algo.fedcot.config import PerturbationConfig
from fate_llm_ext.algo.fedcot.perturbation.mechanisms import make_mechanism
from fate_llm_ext.algo.fedcot.perturbation.perturber import Perturber
from fate_llm_ext.algo.fedcot.perturbation.vocabulary import Vocabulary
from fate_llm_ext.algo.fedcot.perturbation.words import split


def main() -> None:
    """Measure one run."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--strategy", default="exponential")
    settings = parser.parse_args()
    table = np.load(settings.table)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    vocabulary = Vocabulary(tuple(words_of(len(table))), table)
    texts = texts_of(list(vocabulary.words), settings.tokens)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM := VmRSS
    loaded = status_kib("VmRSS")
    config = PerturbationConfig(strategy=settings.strategy, epsilon=settings.epsilon)
    mechanism, preparing = timed(lambda: make_mechanism(config, vocabulary.vectors))
    perturber = Perturber(vocabulary, mechanism)
    draw = np.random.default_rng(0)
    perturber.draw([split(texts[0])], draw)
    perturbed, seconds = timed(lambda: perturber.draw([split(text) for text in texts], draw))
    peak = status_kib("VmHWM")
    memory = {"peak_gb": peak / 2**20, "peak_gb_over_table": (peak - loaded) / 2**20}
    report(texts, perturbed.texts, seconds, preparing=preparing["cpu"], **memory)


if __name__ == "__main__":
    main()

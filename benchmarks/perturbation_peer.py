"""The side of `perturbation.py` that runs in the environment of fate-llm 2.2 (`make peer`).

    .venv-peer/bin/python benchmarks/perturbation_peer.py --table table.npy --tokens 2000 --epsilon 3

Its `InferDPTKit.perturb` is used as it is, one text at a time, with the kit that its own functions make of the same
words and vectors. Making the kit is outside. The last line is one JSON object.
"""

from __future__ import annotations

import numpy as np
from fate_llm.algo.inferdpt.utils import InferDPTKit
from perturbation_work import options, report, texts_of, timed, words_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def main() -> None:
    """Measure one run."""
    settings = options(__doc__.splitlines()[0]).parse_args()
    table = np.load(settings.table)
    words = words_of(len(table))
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    kit, preparing = timed(lambda: InferDPTKit(*InferDPTKit.make_inferdpt_kit_param(table, words), tokenizer))
    texts = texts_of(words, settings.tokens)
    np.random.seed(0)
    kit.perturb(texts[0], settings.epsilon)
    after, seconds = timed(lambda: [kit.perturb(text, settings.epsilon) for text in texts])
    report(texts, after, seconds, preparing=preparing["cpu"])


if __name__ == "__main__":
    main()

"""The client's DP generator: what it writes, and how it is kept.

    s = prompt(label) + text;    D' ~ generator(. | prompt(label))        (FDKT, arXiv 2405.14212)

All here is post-processing of DP-SGD, and of the noisy histogram if the labels' frequencies are asked for: nothing
looks at a private row, so texts may be sampled, dropped and sent at no further cost.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Tuple

import numpy as np

from fate_llm_ext.algo.causal import Model
from fate_llm_ext.algo.control import Records
from fate_llm_ext.algo.fdkt.config import ValidityConfig
from fate_llm_ext.algo.fdkt.validity import REASONS, Validity
from fate_llm_ext.algo.synthesis import distinct, sample_texts
from fate_llm_ext.config import ControlConfig, SynthesisConfig
from fate_llm_ext.errors import ExtensionError

logger = logging.getLogger(__name__)


def sample_valid(
    model: Model,
    control: ControlConfig,
    counts: np.ndarray,
    synthesis: SynthesisConfig,
    validity: ValidityConfig,
    *,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Tuple[Records, Dict[str, int]]:
    """Sample ``counts[c]`` texts of each label c from the generator and keep those that are valid.

    Args:
        counts: texts to sample of each label (int [C]).
        seed: public; the same one gives the same texts from the same generator.

    Returns:
        The valid texts in the labels' order, and how many were dropped for each of
        :data:`~fate_llm_ext.algo.fdkt.validity.REASONS`, the first that fits. A label may be left without a text.

    Raises:
        ExtensionError: E730 texts were asked for and none is valid; E662, E665 as
            :func:`~fate_llm_ext.algo.synthesis.sample_texts`.
    """
    written, ended = sample_texts(
        model.network, model.tokenizer, control, counts, synthesis, seed=seed, heartbeat=heartbeat
    )
    records, dropped = valid(written, ended, control, validity)
    if len(written) and not len(records):
        told = ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
        raise ExtensionError("E730", asked=len(written), dropped=told)
    per_label = np.bincount(records.codes, minlength=len(counts))
    for label in np.flatnonzero((per_label == 0) & (np.asarray(counts) > 0)).tolist():
        logger.warning("none of %d texts of label %d of %d is valid", counts[label], label + 1, len(counts))
    return records, dropped


def valid(
    records: Records, ended: np.ndarray, control: ControlConfig, config: ValidityConfig
) -> Tuple[Records, Dict[str, int]]:
    """Leave out texts that are not valid, or repeat an earlier valid one up to white space and case.

    Args:
        ended: which texts the model has ended itself (bool [S]).
    """
    dropped = dict.fromkeys(REASONS, 0)
    validity = Validity(config, control)
    good = []
    for index, (text, own) in enumerate(zip(records.texts, ended.tolist())):
        problem = validity.problem(text, own)
        if problem is None:
            good.append(index)
        else:
            dropped[problem] += 1
    kept, again = distinct([records.texts[index] for index in good])
    dropped["duplicate"] += again["duplicate"]
    chosen = [good[index] for index in kept]
    return Records(records.codes[chosen], [records.texts[index] for index in chosen]), dropped

"""The public set as FedMKT uses it: labelled rows, calibration rows among them, unlabelled rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.fedmkt.config import FedMKTConfig
from fate_llm_ext.data.datasets import has_split, named, read_rows
from fate_llm_ext.data.fingerprint import fingerprint_examples
from fate_llm_ext.data.formats import Row
from fate_llm_ext.data.templates import Example, get_template
from fate_llm_ext.errors import ExtensionError


@dataclass(frozen=True)
class PublicSet:
    """Examples known to every party.

    Attributes:
        labelled: rows with a gold answer; public row i is ``labelled[i]``.
        unlabelled: rows without; public row ``len(labelled) + j`` is ``unlabelled[j]``.
        calibration: labelled rows held out, where answers of other rows are to be taught (int64 [C]).
        choices: the closed list of answers, or () for free text.
    """

    labelled: List[Example]
    unlabelled: List[Example]
    calibration: np.ndarray
    choices: Tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, row: int) -> Example:
        split = len(self.labelled)
        return self.labelled[row] if row < split else self.unlabelled[row - split]

    @property
    def training(self) -> np.ndarray:
        """Labelled rows that are not held out (int64 [N])."""
        return np.setdiff1d(np.arange(len(self.labelled)), self.calibration)

    @property
    def regions(self) -> int:
        """In how many kinds of answers skill is measured apart."""
        return max(1, len(self.choices))

    def gold_choice(self, rows: np.ndarray) -> np.ndarray:
        """Index of the gold answer among the choices (0 for free text)."""
        if not self.choices:
            return np.zeros(len(rows), dtype=np.int64)
        return np.array([self.choices.index(self.labelled[row].answer or "") for row in rows], dtype=np.int64)


def load_public(path: Path, config: FedMKTConfig) -> Tuple[PublicSet, str]:
    """Read the public set and its fingerprint.

    Raises:
        ExtensionError: E330 if no row has an answer, E331 if too few of them could be held out.
    """
    template = get_template(config.task)
    examples = list(template.examples(read_rows(path, "train", config.task.columns), source=str(path.name)))
    labelled = [e for e in examples if e.answer is not None][: config.public.labelled]
    unlabelled = [e for e in examples if e.answer is None][: config.public.unlabelled]
    if not labelled:
        raise ExtensionError("E330", name=config.public.name, rows=len(examples))
    held_out = 0
    if unlabelled:
        held_out = round(config.distill.calibration_share * len(labelled))
        if held_out < 1 or held_out == len(labelled):
            raise ExtensionError(
                "E331", labelled=len(labelled), share=config.distill.calibration_share, held_out=held_out
            )
    order = np.random.default_rng(config.seed).permutation(len(labelled))
    choices = max((e.choices or () for e in examples), key=len)
    public = PublicSet(labelled, unlabelled, np.sort(order[:held_out]), tuple(choices))
    return public, fingerprint_examples([*labelled, *unlabelled])


def load_labelled(path: Path, split: str, config: FedMKTConfig, limit: Optional[int] = None) -> List[Example]:
    """The rows of a split that have an answer, of the first ``limit`` ones."""
    return _labelled(read_rows(path, split, config.task.columns)[:limit], config, path)


def labelled(rows: Sequence[Row], config: FedMKTConfig, path: Path) -> List[Example]:
    """Those of a table's rows (columns as in the file) that have an answer."""
    return _labelled(list(named(rows, config.task.columns, path)), config, path)


def _labelled(rows: Sequence[Row], config: FedMKTConfig, path: Path) -> List[Example]:
    examples = get_template(config.task).examples(rows, source=path.name)
    return [example for example in examples if example.answer is not None]


def load_test(table: Path, public: Path, config: FedMKTConfig) -> List[Example]:
    """The `test` split of the party's own table, else of the public set; empty if neither has one."""
    for path in (table, public):
        if has_split(path, "test"):
            return load_labelled(path, "test", config, config.evaluation.max_rows)
    return []

"""New labelled texts that an LLM writes after a client's synthetic ones (arXiv 2405.14212, D_a)."""

from __future__ import annotations

import itertools
import logging
import math
import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence

import numpy as np

from fate_llm_ext.algo.answering import watched
from fate_llm_ext.algo.control import Records, clean
from fate_llm_ext.algo.fdkt.config import AugmentationConfig
from fate_llm_ext.algo.fdkt.contamination import Passage, overlap
from fate_llm_ext.algo.fdkt.labels import parse_label
from fate_llm_ext.algo.fdkt.prompts import Prompts, one_line
from fate_llm_ext.algo.fdkt.shots import Shots, draw, fit
from fate_llm_ext.algo.party import derived_seed
from fate_llm_ext.algo.synthesis import code_counts, distinct
from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.models.engines.base import Completion, Engine

__all__ = ["REASONS", "Augmentation", "augment", "parse_label"]
logger = logging.getLogger(__name__)

# Why a prompt gave no text: no room for a demonstration (or for the question about the label); the server refused it;
# nothing written; the text repeats a demonstration or an earlier text; it copies its demonstrations; no answer about
# its label could be read (or was given); that answer is not the label asked for (label_by: both); its label has all
# its texts.
REASONS = ("no_room", "refused", "empty", "duplicate", "copied", "unreadable_label", "label_differs", "surplus")

_STOP = ("\n\n",)  # demonstrations are paragraphs
_ENOUGH = 64  # so many prompts of a wave that give nothing say that further ones will not either
_SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What the LLM has written for one client.

    Attributes:
        records: the texts, with labels; no label has more than its share of ``samples``.
        asked: prompts made; each gave a record or was dropped.
        dropped: reason (:data:`REASONS`) -> prompts that gave no record.
        note: why there are no texts, or fewer than asked for; empty otherwise. Holds no text.
    """

    records: Records
    asked: int
    dropped: Dict[str, int]
    note: str


def augment(
    demonstrations: Records,
    labels: Sequence[str],
    engine: Engine,
    prompts: Prompts,
    config: AugmentationConfig,
    *,
    description: str,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Augmentation:
    """Let the LLM write ``config.samples`` texts, alike many of each label that has a demonstration.

    It goes in waves: ask for what each label lacks (more, where few of a label's prompts have given one), drop what is
    of no use, ask again; until all are there, ``attempts`` x ``samples`` prompts are used up, or a wave gives nothing.

    Args:
        demonstrations: the client's texts that passed the filter; codes are places in ``labels``.
        labels: the client's labels.
        description: what its texts are.
        seed: the same one gives the same prompts; and texts, as far as the engine's do.

    Raises:
        ExtensionError: E209 a template fails; what the engine raises.
    """
    there = np.bincount(demonstrations.codes, minlength=len(labels)) > 0
    quota = code_counts(config.samples, there.astype(float), len(labels)) if there.any() else there.astype(np.int64)
    tally = _Tally(quota)
    writer = _Writer(demonstrations, labels, engine, prompts, config, description, heartbeat)
    budget = int(config.attempts * config.samples)
    for wave in itertools.count():
        asked, kept = tally.asked, len(tally.texts)
        if kept == int(quota.sum()) or asked == budget:
            break
        writer.write(tally, tally.next_wave(budget - asked), derived_seed(seed, wave))
        logger.info("wave %d: %d prompts, %d texts kept", wave, tally.asked - asked, len(tally.texts) - kept)
        if len(tally.texts) == kept and tally.asked - asked >= _ENOUGH:
            break
    records = Records(np.array(tally.codes, dtype=np.int32), tally.texts)
    return Augmentation(records, tally.asked, tally.dropped, _note(tally, labels, there, config.samples))


class _Tally:
    """What has been asked for and kept so far.

    Attributes:
        quota: texts that each label shall have (int64 [C]).
        prompts: prompts so far, by the label asked for (int64 [C]).
        kept: texts so far, by label (int64 [C]).
        questions: texts whose label the LLM was asked for.
    """

    def __init__(self, quota: np.ndarray) -> None:
        self.quota = quota
        self.prompts = np.zeros_like(quota)
        self.kept = np.zeros_like(quota)
        self.codes: List[int] = []
        self.texts: List[str] = []
        self.dropped: Dict[str, int] = dict.fromkeys(REASONS, 0)
        self.questions = 0

    @property
    def asked(self) -> int:
        """Prompts in all."""
        return int(self.prompts.sum())

    def next_wave(self, left: int) -> np.ndarray:
        """Prompts to make per label (int64 [C]), at most ``left``: what it lacks over the share that came so far.

        A label's prompts at most double, and it gets no more than an equal part of what is left: a hopeless one is
        found out early, and takes nothing from the others.
        """
        missing = self.quota - self.kept
        most = np.minimum(np.maximum(self.prompts, missing), math.ceil(left / np.count_nonzero(missing)))
        wanted = np.minimum(np.ceil(missing * (self.prompts + 1) / (self.kept + 1)), most)
        return code_counts(min(left, int(wanted.sum())), wanted, len(wanted))

    def drop(self, reason: str, count: int = 1) -> None:
        """Count prompts that gave nothing."""
        self.dropped[reason] += count

    def keep(self, text: str, code: int) -> None:
        """Take a text if its label lacks one."""
        if self.kept[code] == self.quota[code]:
            self.drop("surplus")
        else:
            self.kept[code] += 1
            self.codes.append(code)
            self.texts.append(text)


@dataclass(frozen=True, eq=False)
class _Draft:
    """A text and the label that was asked for."""

    text: str
    asked: int


class _Writer:
    """Makes prompts, asks the LLM, drops what is of no use."""

    def __init__(
        self,
        demonstrations: Records,
        labels: Sequence[str],
        engine: Engine,
        prompts: Prompts,
        config: AugmentationConfig,
        description: str,
        heartbeat: Callable[[str], None],
    ) -> None:
        self.demonstrations, self.labels = demonstrations, list(labels)
        self.engine, self.prompts, self.config = engine, prompts, config
        self.description, self.heartbeat = description, heartbeat
        self.passages = [Passage(text) for text in demonstrations.texts]
        self.seen = list(demonstrations.texts)  # and all texts that were written since
        # an answer is a label and a little more; a token has a byte at least
        longest = max(len(label.encode()) for label in labels)
        self.answer = GenerationConfig(top_k=1, max_new_tokens=longest + 8, batch_size=config.batch_size)

    def write(self, tally: _Tally, counts: np.ndarray, seed: int) -> None:
        """Make ``counts[c]`` prompts for each label c, and tally what comes of them."""
        asked = np.repeat(np.arange(len(counts)), counts)
        tally.prompts += counts
        drawn = draw(self.demonstrations.codes, asked, self.config.shots, np.random.default_rng(seed))
        drafts = self._new(tally, drawn, derived_seed(seed, 0))
        if self.config.label_by == "requested":
            for draft in drafts:
                tally.keep(draft.text, draft.asked)
        else:
            self._keep_answered(tally, drafts, derived_seed(seed, 1))

    def _new(self, tally: _Tally, drawn: Sequence[Shots], seed: int) -> List[_Draft]:
        """What the LLM writes after the demonstrations, without empty, repeated and copied texts."""
        rendered, room = fit(drawn, self._render, self._fits, self.config.demonstrations)
        sent = np.flatnonzero(room).tolist()
        tally.drop("no_room", len(drawn) - len(sent))
        written = self.engine.generate(
            [rendered[index] for index in sent],
            self.config,
            seed=seed,
            stop=_STOP,
            step=watched("writing texts", self.heartbeat),
        )
        texts = [trim(one, self.labels) for one in written]
        fresh = [index - len(self.seen) for index in distinct([*self.seen, *texts])[0] if index >= len(self.seen)]
        refused, empty = sum(one.refused for one in written), texts.count("")  # what is refused is empty
        tally.drop("refused", refused)
        tally.drop("empty", empty - refused)
        tally.drop("duplicate", len(texts) - empty - len(fresh))
        drafts = []
        for place in fresh:
            shots = drawn[sent[place]]
            shown = [self.passages[index] for index in shots.shown(int(room[sent[place]]))]
            if overlap(Passage(texts[place]), shown) > self.config.max_overlap:
                tally.drop("copied")
            else:
                drafts.append(_Draft(texts[place], shots.label))
        self.seen += [texts[place] for place in fresh]
        return drafts

    def _fits(self, texts: Sequence[str]) -> np.ndarray:
        return self.engine.fits(texts, self.config)

    def _render(self, shots: Shots, count: int) -> str:
        chosen = [
            (self.labels[self.demonstrations.codes[index]], self.demonstrations.texts[index])
            for index in shots.shown(count)
        ]
        return self.prompts.augment(self.description, self.labels, chosen, self.labels[shots.label])

    def _keep_answered(self, tally: _Tally, drafts: Sequence[_Draft], seed: int) -> None:
        """Ask the LLM for the label of each text; those that got the one asked for come first."""
        questions = [self.prompts.label(self.description, self.labels, draft.text) for draft in drafts]
        sent = np.flatnonzero(self.engine.fits(questions, self.answer)).tolist() if drafts else []
        tally.drop("no_room", len(drafts) - len(sent))
        tally.questions += len(sent)
        answers = self.engine.generate(
            [questions[index] for index in sent],
            self.answer,
            seed=seed,
            step=watched("asking for labels", self.heartbeat),
        )
        both = []
        for index, one in zip(sent, answers):
            both.append((drafts[index], parse_label(one.text, self.labels)))
            self.heartbeat("reading labels")
        for draft, label in sorted(both, key=lambda pair: pair[0].asked != pair[1]):
            if label is None:
                tally.drop("unreadable_label")
            elif self.config.label_by == "both" and label != draft.asked:
                tally.drop("label_differs")
            else:
                tally.keep(draft.text, label)


def trim(written: Completion, labels: Sequence[str]) -> str:
    """The text alone: up to an empty line or the next demonstration, without a heading of its own.

    If it was cut at ``max_new_tokens``, it ends with its last whole sentence, if that leaves half of it.
    """
    text = clean(written.text.encode(errors="ignore").decode())  # JSON can hold half a surrogate pair
    heading = "|".join(re.escape(one_line(label)) for label in labels)
    text = re.sub(rf"^(?:{heading}):\s*", "", text)
    whole = re.split(rf"\n[^\S\n]*\n|\n(?:{heading}):", text, maxsplit=1)
    text = whole[0].strip()
    if not written.finished and len(whole) == 1:
        ends = [match.end() for match in _SENTENCE.finditer(text) if 2 * match.end() >= len(text)]
        text = text[: ends[-1]] if ends else text
    if text.endswith((":", "：")):  # "Here is a new one:" announces a text and is none
        return ""
    return text if any(letter.isalnum() for letter in text) else ""


def _note(tally: _Tally, labels: Sequence[str], there: np.ndarray, samples: int) -> str:
    """Why there are fewer texts than asked for; labels are public, texts are not."""
    if not there.any():
        return f"there is no demonstration of any of the {len(labels)} labels to write after"
    notes = []
    if not there.all():
        notes.append(f"labels without a demonstration were left out: {_names(labels, ~there)}")
    dropped = tally.dropped
    bare = there & (tally.quota > 0) & (tally.kept == 0)
    if dropped["no_room"] == tally.asked:
        notes.append(f"not one of {tally.asked} prompts fits into the LLM's context, even with one demonstration")
    elif tally.questions and dropped["unreadable_label"] == tally.questions:
        notes.append(f"of the LLM's {tally.questions} answers about a text's label, 0 could be read")
    elif len(tally.texts) < samples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        notes.append(f"{len(tally.texts)} of {samples} texts came of {tally.asked} prompts (dropped: {reasons})")
        if bare.any():
            notes.append(f"labels without a text: {_names(labels, bare)}")
    return "; ".join(notes)


def _names(labels: Sequence[str], chosen: np.ndarray) -> str:
    names = [labels[index] for index in np.flatnonzero(chosen)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

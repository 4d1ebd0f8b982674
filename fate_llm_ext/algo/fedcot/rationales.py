"""Rationales that the arbiter's LLM writes, and what can be read in them."""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from fate_llm_ext.algo.answering import watched
from fate_llm_ext.algo.fedcot.config import RationaleConfig
from fate_llm_ext.algo.fedcot.prompts import Prompts
from fate_llm_ext.algo.fitting import fit
from fate_llm_ext.algo.messages import LONGEST_TEXT
from fate_llm_ext.models.engines.base import Completion, Engine

logger = logging.getLogger(__name__)

# Why a question has no rationale: there is no room for it in the LLM's context, even without demonstrations; the server
# refused it; nothing was written that is text; what was written cannot be so few tokens.
REASONS = ("no_room", "refused", "empty", "too_long")

_TOKEN = 128  # bytes; no token of usual vocabularies is longer
_LOOKED_AT = 4000  # characters of a rationale in which an answer is looked for: the last ones
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ue000-\\uf8ff]")
_DOING = "writing rationales"


@dataclass(frozen=True, eq=False)
class Explanations:
    """What the LLM has written for one client: M rationales for S questions.

    Attributes:
        codes: the question of each, an index into the questions (int32 [M], ascending).
        texts: without white space around them, none empty.
        unfinished: which were cut at ``rationale.max_new_tokens`` (bool [M]).
        dropped: reason (:data:`REASONS`) -> questions without a rationale.
        shortened: prompts that had room for some of the demonstrations only, or for none.
        note: why there are no rationales, or fewer than questions; empty otherwise. Holds no text.
    """

    codes: np.ndarray
    texts: List[str]
    unfinished: np.ndarray
    dropped: Dict[str, int]
    shortened: int
    note: str


def explain(
    questions: Sequence[str],
    choices: Sequence[str],
    keys: Sequence[str],
    engine: Engine,
    prompts: Prompts,
    config: RationaleConfig,
    *,
    seed: int,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Explanations:
    """Let the LLM write a rationale for each question.

    A prompt that does not fit into the LLM's context is tried with fewer demonstrations. Whatever is wrong with one
    question or one answer costs this one alone.

    Args:
        questions: S texts of a client.
        choices: its task's closed list of answers; empty if it has none.
        keys: what each question is about, for a recording, see :meth:`Engine.generate`.
        seed: the same one gives the same texts, as far as the engine's are.

    Raises:
        ExtensionError: E209 the template fails; what the engine raises.
    """
    heartbeat(_DOING)

    def render(index: int, demonstrations: int) -> str:
        return prompts.llm(questions[index], choices, demonstrations)

    whole = len(prompts.demonstrations)
    rendered, shown = fit([whole] * len(questions), render, lambda texts: engine.fits(texts, config), least=0)
    sent = np.flatnonzero(shown >= 0).tolist()
    written = engine.generate(
        [rendered[index] for index in sent],
        config,
        seed=seed,
        stop=config.stop,
        step=watched(_DOING, heartbeat),
        keys=[keys[index] for index in sent],
    )
    dropped = dict.fromkeys(REASONS, 0)
    dropped["no_room"] = len(questions) - len(sent)
    codes, texts, unfinished = [], [], []
    for index, one in zip(sent, written):
        text = clean(one.text[: LONGEST_TEXT + 1])
        reason = _problem(one, text, config.max_new_tokens)
        if reason is not None:
            dropped[reason] += 1
            continue
        codes.append(index)
        texts.append(text)
        unfinished.append(not one.finished)
    shortened = int(((shown >= 0) & (shown < whole)).sum())
    note = _note(len(questions), len(codes), dropped)
    logger.info("%d rationales for %d questions, %d prompts shortened", len(codes), len(questions), shortened)
    return Explanations(
        np.array(codes, dtype=np.int32), texts, np.array(unfinished, dtype=bool), dropped, shortened, note
    )


def clean(text: str) -> str:
    """What an LLM wrote as text: NFC, plain line ends, no control characters, no white space around it."""
    text = text.encode(errors="ignore").decode()  # JSON can hold half a surrogate pair
    text = "\n".join(text.splitlines())
    return unicodedata.normalize("NFC", _CONTROL.sub("", text)).strip()


def _problem(one: Completion, text: str, tokens: int) -> Optional[str]:
    """One of :data:`REASONS`, or None; ``text`` is the beginning of what was written."""
    if one.refused:
        return "refused"
    if not any(letter.isalnum() for letter in text):
        return "empty"
    # A server may ignore how many tokens it was asked for.
    return "too_long" if len(text.encode()) > min(LONGEST_TEXT, _TOKEN * tokens) else None


def _note(asked: int, got: int, dropped: Dict[str, int]) -> str:
    if got == asked:
        return ""
    if dropped["no_room"] == asked:
        return f"not one of {asked} questions fits into the LLM's context, even without demonstrations"
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return f"the LLM gave {got} rationales for {asked} questions (dropped: {reasons})"


# --- reading -------------------------------------------------------------------------------------------


def read_answer(text: str, config: RationaleConfig) -> Optional[str]:
    """The answer that a rationale comes to: what ``rationale.answer`` finds last; None if it finds nothing.

    Only the last 4,000 characters are looked at: an answer stands at the end, and the expression may be a slow one.
    """
    found = _matches(text, config)
    return found[-1][1].strip() if found else None


def without_answer(text: str, config: RationaleConfig) -> str:
    """The reasons alone: the text without the sentences that say the answer which :func:`read_answer` reads.

    This is what an SLM learns to write as a rationale, as in Distilling step-by-step; the answer is its other task.
    A clause goes alone where a comma or the like sets it off (`it barks, so the answer is (b).`).
    """
    found = _matches(text, config)
    if not found:
        return text.strip()
    start = max(0, len(text) - _LOOKED_AT)
    kept, at = [], 0
    for match in (one for one in found if core(one[1]) == core(found[-1][1])):
        begin, end = _sentence(text, start + match.start(), start + match.end())
        if begin >= at:
            kept.append(_ended(text[at:begin].strip()))
            at = end
    kept.append(text[at:].strip())
    return " ".join(filter(None, kept))


def phrases(text: str, config: RationaleConfig) -> List[Tuple[int, int]]:
    """Where a text announces answers, up to the answers themselves: first and last place of each, ascending."""
    skipped = max(0, len(text) - _LOOKED_AT)
    return [(skipped + one.start(), skipped + one.start(1)) for one in _matches(text, config)]


def core(answer: str) -> str:
    """An answer without case, punctuation and markup."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", answer).casefold()))


def _matches(text: str, config: RationaleConfig) -> List[re.Match[str]]:
    """All that the expression finds in the end of the text, with something in its first group."""
    return [one for one in re.finditer(config.answer, text[-_LOOKED_AT:]) if (one[1] or "").strip()]


_WORD = re.compile(r"\w+")
_ENDS = ".!?。！？\n"
_BREAK = re.compile(r"[.!?,;:—–](?=\s)|[。！？，；：\n]")
_CLOSING = "\"'”’)]*"
_LINKS = frozenset(["so", "therefore", "thus", "hence", "then", "and", "consequently", "accordingly", "finally"])


def _sentence(text: str, start: int, end: int) -> Tuple[int, int]:
    """Where the clause begins that has the answer at ``start``, and where its sentence ends."""
    first = max(0, start - _LOOKED_AT)
    breaks = [match.end() for match in _BREAK.finditer(text, first, start)]
    begin = breaks[-1] if breaks else first
    while end < len(text) and not (text[end] in _ENDS and (end + 1 == len(text) or not text[end + 1].isalnum())):
        end += 1
    while end < len(text) and text[end] in _ENDS + _CLOSING:
        end += 1
    return begin, end


def _ended(text: str) -> str:
    """The text without words that led to what stood behind it; with a full stop, if it ended with a comma or so."""
    while True:
        text = text.rstrip()
        bare = text.rstrip(",;:—–- ")
        before, _, word = bare.rpartition(" ")
        if word.lower() not in _LINKS:
            break
        text = before
    return bare + "." if bare and bare != text else bare

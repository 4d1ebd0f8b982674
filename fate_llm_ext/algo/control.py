"""Records with a control code (label) and a text, from a table's rows to token ids.

The model sees the prompt of the code, by default the code and an empty line, then the text and the end token; it
learns the last two. Prompt and text are tokenised apart: tokenised together, GPT-2 would write the two line ends in
another way before a text than at the end of the prompt from which texts are sampled.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from fate_llm_ext.algo.answering import Encoded
from fate_llm_ext.config import ControlConfig
from fate_llm_ext.data.collate import Item
from fate_llm_ext.data.datasets import named, read_rows
from fate_llm_ext.data.formats import Row
from fate_llm_ext.data.prompts import PromptTemplate
from fate_llm_ext.data.templates import Template
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.encoding import Spans, SpanTokenizer


@dataclass(frozen=True, eq=False)
class Records:
    """N texts with their control codes.

    Attributes:
        codes: index into ``control.values`` (int32 [N]).
        texts: without white space around them.
    """

    codes: np.ndarray
    texts: List[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Records:
        """The records at ``rows``, in that order."""
        return Records(self.codes[rows], [self.texts[row] for row in rows])

    def first(self, count: int) -> Records:
        """The first ``count`` records."""
        return Records(self.codes[:count], self.texts[:count])


def clean(text: str) -> str:
    """A text as it is compared and trained on: NFC, plain line ends, no white space around it."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def read_records(path: Path, split: str, control: ControlConfig) -> Records:
    """The records of a table's split: :func:`~fate_llm_ext.data.datasets.read_rows`, then :func:`to_records`."""
    return to_records(read_rows(path, split), control, path)


def to_records(table: Sequence[Row], control: ControlConfig, path: Path) -> Records:
    """The records of a table's rows, in their order.

    Args:
        table: the rows, columns as in the file.
        path: where they come from, for errors.

    Raises:
        ExtensionError: E660 a code is not in the public list; E661 a row has no code or no text; E663 two codes
            are the same; E205 a column of ``control.columns`` is not there; E209, E210 a Jinja template is broken or
            does not fit a row.
    """
    known = _known(control)
    rows = list(named(table, control.columns, path))
    template = Template("control", control.code, control.text, None)
    examples = list(template.examples(rows, str(path)))
    codes = [clean(example.prompt) for example in examples]
    texts = [clean(example.answer or "") for example in examples]
    for what, values in (("code", codes), ("text", texts)):
        empty = [number for number, value in enumerate(values, 1) if not value]
        if empty:
            columns = ", ".join(dict.fromkeys(name for row in rows for name in row))
            raise ExtensionError(
                "E661", path=path, count=len(empty), rows=len(rows), what=what, row=empty[0], columns=columns
            )
    unknown = [number for number, code in enumerate(codes, 1) if code not in known]
    if unknown:
        raise ExtensionError("E660", path=path, count=len(unknown), rows=len(rows), codes=len(known), row=unknown[0])
    return Records(np.array([known[code] for code in codes], dtype=np.int32), texts)


def control_prompt(control: ControlConfig) -> PromptTemplate:
    """The template of the prompt that asks for a text of a code."""
    return PromptTemplate("control.prompt", control.prompt, ("code",))


def _known(control: ControlConfig) -> Dict[str, int]:
    known: Dict[str, int] = {}
    for index, value in enumerate(control.values):
        other = known.setdefault(clean(value), index)
        if other != index:
            raise ExtensionError("E663", first=other, second=index, codes=len(control.values))
    return known


def encode_prompts(tokenizer: Any, control: ControlConfig, needed: int = 1) -> List[np.ndarray]:
    """Token ids of each code's prompt, with the tokenizer's prefix (C times int32 [T_c]).

    Args:
        needed: how many tokens a text must be able to have within ``control.max_length``.

    Raises:
        ExtensionError: E662 the longest prompt does not leave that room; E209 the template is broken.
    """
    known = _known(control)
    spans = SpanTokenizer(tokenizer)
    template = control_prompt(control)
    asked = [template.render(code=code) for code in known]
    prompts = [np.concatenate([spans.prefix, one.ids]).astype(np.int32) for one in spans.spans(asked)]
    longest = int(np.argmax([len(prompt) for prompt in prompts]))
    tokens = len(prompts[longest])
    if tokens + needed > control.max_length:
        raise ExtensionError("E662", control=longest, tokens=tokens, needed=needed, limit=control.max_length)
    return prompts


def encode_texts(tokenizer: Any, texts: Sequence[str], room: int) -> List[Spans]:
    """Tokens of each text and the end token, with their bytes; of a text with more than ``room`` the end goes."""
    spans = SpanTokenizer(tokenizer, dummy_prefix=False)
    result = []
    for text, one in zip(texts, spans.spans(texts)):
        size = len(text.encode())
        ids, starts, ends = (
            np.append(array, np.int32(last))[:room]
            for array, last in ((one.ids, spans.eos_id), (one.starts, size), (one.ends, size))
        )
        result.append(Spans(ids, np.maximum(starts, 0), ends))
    return result


def join(prompt: np.ndarray, text: Spans, size: int) -> Encoded:
    """Prompt and text as one sequence; ``size`` is the text's in bytes."""
    ids = np.concatenate([prompt, text.ids]).astype(np.int32)
    return Encoded(ids, np.arange(len(prompt), len(ids)), text.starts, size)


def encode_records(tokenizer: Any, records: Records, control: ControlConfig) -> List[Encoded]:
    """Each record as token ids; places are those of the text and of the end token.

    All texts have the same room, what the longest prompt leaves of ``control.max_length``: how a text is cut
    must not depend on its code. A text that is cut has no end token.

    Raises:
        ExtensionError: E662 there is no room for a text.
    """
    prompts = encode_prompts(tokenizer, control)
    texts = encode_texts(tokenizer, records.texts, text_room(prompts, control))
    sizes = [len(text.encode()) for text in records.texts]
    return [join(prompts[code], text, size) for code, text, size in zip(records.codes.tolist(), texts, sizes)]


def text_room(prompts: Sequence[np.ndarray], control: ControlConfig) -> int:
    """How many tokens a text may have, the end token included."""
    return control.max_length - max(map(len, prompts))


def items(encoded: Sequence[Encoded]) -> List[Item]:
    """Items that train on the texts as they are (cross-entropy)."""
    return [Item(one.ids, one.places) for one in encoded]

"""An engine behind an OpenAI-compatible HTTP server: vLLM, SGLang, transformers serve, a provider."""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union
from urllib.parse import urlsplit

import numpy as np

from fate_llm_ext.config import GenerationConfig
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.models.engines import inflight
from fate_llm_ext.models.engines.base import Completion, Engine, cut
from fate_llm_ext.models.engines.transport import Transport, Unusable
from fate_llm_ext.models.scoring import Step
from fate_llm_ext.site import Endpoint, Site

logger = logging.getLogger(__name__)

_MOST_STOPS = 4  # OpenAI's limit; texts are cut at the others when they are here
_GRACE = 5.0  # seconds after a text's deadline in which its own thread may notice it
_TRIAL = GenerationConfig(max_new_tokens=1)
_REFUSED = Completion("", True, refused=True)
_HERE = ("localhost", "127.0.0.1", "::1")


class HTTPEngine(Engine):
    """Keeps ``endpoint.concurrency`` requests in flight, one per text.

    Each request carries a seed made of the job's and of the text's place in the list. Where the server honours it,
    the same seed gives the same texts; this side cannot promise it. Results belong to a place in the list, so that
    retries neither lose nor double a text.

    Args:
        endpoint: address and limits.
        key: API key, sent as a bearer token.
        name: the endpoint's name in the site file.
        heartbeat: called about every second while this engine waits, from the thread that waits.
        verify: as in :class:`~fate_llm_ext.models.engines.transport.Transport`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: Optional[str],
        name: str,
        heartbeat: Callable[[str], None] = lambda doing: None,
        verify: Union[bool, str] = True,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._heartbeat = heartbeat
        self._model = endpoint.model
        self._transport = Transport(endpoint, key, name, verify)
        self._told = False
        self._tried = False  # the trial request has passed: a refusal is about a prompt
        self._answered = False  # and so has a prompt of the job

    def connect(self) -> None:
        """Ask for a text of one token: a job shall not find out later, when it has spent privacy, that nobody answers.

        A trial says more than the list of models, which not all servers have, and in which not all name what they
        serve: it also shows whether the model is there and all fields of a request are known. The list is read if the
        site file names no model.

        Raises:
            ExtensionError: E416 it serves several models or none, and the site file names none; else as for texts.
        """
        if self._model is None:
            request = ("GET", "/models", None)
            (models,) = self._gather(lambda _: request, _model_names, lambda _: "the list of models", 1)
            if len(models) != 1:
                shown = ", ".join(models[:8]) or "none"
                raise ExtensionError("E416", name=self.name, count=len(models), models=shown)
            self._model = models[0]
        self._texts(["a"], _TRIAL, 0, ["\n"], lambda _: "a trial request")
        self._tried = True

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
        step: Step = lambda done, total: None,
        keys: Optional[Sequence[str]] = None,
    ) -> List[Completion]:
        """See :meth:`Engine.generate`; ``batch_size`` and ``keys`` have no meaning here.

        Once the trial request has passed, a prompt that is refused (status 400, 413, 422, or an answer that says so)
        gets a completion that says it; the number is logged.

        Raises:
            ExtensionError: E413 the server refuses a request for another reason, or all of several prompts before it
                has answered one; E415 it refuses the key; E414 a text has no usable answer within retries
                and deadline; E416 see :meth:`connect`; E417 the server cannot be asked.
        """
        if not prompts:
            return []
        if self._model is None:
            self.connect()
        if config.top_k != 1 and not self._endpoint.top_k and not self._told:
            logger.warning("endpoint %s does not know top_k: the job's %d has no effect", self.name, config.top_k)
            self._told = True
        texts = self._texts(prompts, config, seed, stop, lambda row: f"text {row + 1} of {len(prompts)}", step)
        refused = sum(one.refused for one in texts)
        if refused:
            logger.warning("endpoint %s refused %d of %d texts", self.name, refused, len(texts))
        self._answered |= refused < len(texts)
        return texts

    def fits(self, prompts: Sequence[str], config: GenerationConfig) -> np.ndarray:
        """True for every prompt (bool [N]): only the server knows its context, and refuses what is too long."""
        return np.ones(len(prompts), dtype=bool)

    def _texts(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        seed: int,
        stop: Sequence[str],
        what: Callable[[int], str],
        step: Step = lambda done, total: None,
    ) -> List[Completion]:
        path = "/chat/completions" if self._endpoint.api == "chat" else "/completions"
        statuses: List[int] = []

        def refused(status: int) -> Completion:
            statuses.append(status)
            return _REFUSED

        texts = self._gather(
            lambda row: ("POST", path, self._body(prompts[row], config, seed, row, stop)),
            lambda answer: self._completion(answer, stop),
            what,
            len(prompts),
            step,
            refused if self._tried else None,
        )
        if len(texts) > 1 and not self._answered and all(one.refused for one in texts):
            raise self._transport.refusal(f"all of {len(texts)} texts", statuses[-1] if statuses else 200)
        return texts

    def _gather(
        self,
        request: Callable[[int], Any],
        read: Callable[[Any], Any],
        what: Callable[[int], str],
        count: int,
        step: Step = lambda done, total: None,
        refused: Optional[Callable[[int], Any]] = None,
    ) -> List[Any]:
        """Answers of ``count`` requests (method, path, body), in order; ``refused``: as in the transport."""
        said = time.monotonic()

        def waiting(done: int) -> None:
            nonlocal said
            said = time.monotonic()
            self._heartbeat(f"waiting for the LLM, {done} of {count}")

        def finished(done: int) -> None:
            step(done, count)
            if time.monotonic() - said >= inflight.BEAT:
                waiting(done)

        def work(ticket: inflight.Ticket) -> Any:
            method, path, body = request(ticket.row)
            about = what(ticket.row)
            return self._transport.ask(
                method, path, body, read, what=about, cancelled=ticket.cancelled, begun=ticket.begin, refused=refused
            )

        deadline = self._endpoint.deadline_seconds + _GRACE
        return inflight.gather(
            work,
            count,
            self._endpoint.concurrency,
            done=finished,
            waiting=waiting,
            limit=deadline,
            late=lambda row, tried: self._transport.gave_up(what(row), tried, deadline, "an answer that does not end"),
        )

    def _body(self, prompt: str, config: GenerationConfig, seed: int, row: int, stop: Sequence[str]) -> Dict[str, Any]:
        """The request for one text."""
        body: Dict[str, Any] = {"model": self._model, "max_tokens": config.max_new_tokens, "seed": seed_of(seed, row)}
        if self._endpoint.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if config.top_k == 1:
            body["temperature"] = 0.0  # greedy in every server's language
        else:
            body["temperature"], body["top_p"] = config.temperature, config.top_p
            if self._endpoint.top_k:
                # Left out, it would be what the model's generation_config.json says. -1 is what all take for "all".
                body["top_k"] = config.top_k or -1
        stops = [one for one in stop if one]
        if stops:
            body["stop"] = stops[:_MOST_STOPS]
        return body

    def _completion(self, answer: Any, stop: Sequence[str]) -> Completion:
        """The text of an answer.

        Raises:
            Unusable: it is not what the interface promises.
        """
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise Unusable("an answer without choices")
        reason = choices[0].get("finish_reason")
        if reason in ("abort", "error"):
            raise Unusable("a text that the server broke off")
        if reason == "content_filter":  # with a part of the text, or none
            return _REFUSED
        if self._endpoint.api == "chat":
            message = choices[0].get("message")
            text = message.get("content") if isinstance(message, dict) else None
            if text is None and isinstance(message, dict) and message.get("refusal"):
                return _REFUSED
            if text is None and isinstance(message, dict) and reason == "length":
                text = ""  # all tokens went into what the server keeps to itself (reasoning)
        else:
            text = choices[0].get("text")
        if not isinstance(text, str):
            raise Unusable("an answer without text")
        short, stopped = cut(text, stop)
        return Completion(short, stopped or reason == "stop")


def seed_of(seed: int, row: int) -> int:
    """The seed of one text: 31 bits, which every server takes for an integer."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0] >> 1)


def _model_names(answer: Any) -> List[str]:
    """Names in the answer to GET /models."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise Unusable("a list of models that is none")
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def read_key(site: Site, endpoint: Endpoint, name: str) -> Optional[str]:
    """The API key from the endpoint's ``key_file``; None without one.

    Raises:
        ExtensionError: E411 the file cannot be read or holds no key; E412 everyone may read it.
    """
    if endpoint.key_file is None:
        return None
    path = site.path(endpoint.key_file)
    facts = {"field": "key_file", "name": name, "path": path}
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ExtensionError("E411", **facts, reason=error.strerror or type(error).__name__) from None
    except UnicodeDecodeError:  # its text would quote the file
        raise ExtensionError("E411", **facts, reason="it is not text") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ExtensionError("E412", name=name, path=path, mode=f"{mode:o}")
    if not key:
        raise ExtensionError("E411", **facts, reason="it is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ExtensionError("E411", **facts, reason="it holds more than one key, or signs that no key has")
    return key


def open_http(site: Site, endpoint: Endpoint, name: str, heartbeat: Callable[[str], None]) -> HTTPEngine:
    """The engine of an endpoint of the site file, after a look whether it is there.

    Raises:
        ExtensionError: E411, E412 a file of the endpoint; and those of :meth:`HTTPEngine.connect`.
    """
    key = read_key(site, endpoint, name)
    verify: Union[bool, str] = True
    if endpoint.ca_file is not None:
        path = site.path(endpoint.ca_file)
        if not Path(path).is_file():
            raise ExtensionError("E411", field="ca_file", name=name, path=path, reason="there is no such file")
        verify = str(path)
    address = urlsplit(endpoint.url)
    if address.scheme == "http" and address.hostname not in _HERE:
        what = "prompts and texts" if key is None else "prompts, texts and the key"
        logger.warning("endpoint %s is on another machine and not encrypted: %s can be read on the way", name, what)
    engine = HTTPEngine(endpoint, key, name, heartbeat, verify)
    engine.connect()
    return engine

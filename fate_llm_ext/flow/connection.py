"""HTTP to a FATE Flow server: every call has a time limit, and whatever goes wrong has a code.

FATE's own client has neither; it is asked for nothing but the address that `flow init` wrote.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import re
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Collection, Dict, Optional, Tuple

from fate_llm_ext.errors import ExtensionError

SERVER_VARIABLE = "FATE_LLM_EXT_SERVER"
APP_ID_VARIABLE = "FATE_LLM_EXT_APP_ID"
TOKEN_FILE_VARIABLE = "FATE_LLM_EXT_APP_TOKEN_FILE"
PREFIX = "/v2"  # of FATE Flow's API
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
# To create, stop or rerun a job the server asks all others, each with retries of its own.
FEDERATED_SECONDS = 180.0
_REFUSED_CLIENT = (5000, 5002, 5003, 5004, 5005)
_MALFORMED_CLIENT = 5001
_MOST_OF_A_MESSAGE = 600


@dataclass(frozen=True)
class Account:
    """Where a server is, and as whom it is asked; ``app_id`` is empty without client authentication."""

    scheme: str
    host: str
    port: int
    app_id: str = ""
    token: str = ""

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


def find_account(address: Optional[str] = None) -> Account:
    """The server that is meant, and the credentials for it.

    Args:
        address: ``host:port``, with http:// or https:// in front if need be. None: the variable
            ``FATE_LLM_EXT_SERVER``, else what `flow init` wrote.

    Raises:
        ExtensionError: E800 no server is named, E802 the address is none, E803 half of the credentials is missing.
    """
    stored = _flow_init()
    where = address or os.environ.get(SERVER_VARIABLE) or ""
    if not where and stored.get("ip") and stored.get("port"):
        where = f"{stored['ip']}:{stored['port']}"
    if not where:
        raise ExtensionError("E800")
    match = re.fullmatch(r"(?:(https?)://)?(\[[0-9A-Fa-f:]+\]|[^\s:/@\[\]]+):(\d{1,5})/?", where)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ExtensionError("E802", address=where)
    app_id, token = _credentials()
    if not app_id and where == f"{stored.get('ip')}:{stored.get('port')}" and stored.get("app_token"):
        app_id, token = str(stored.get("app_id") or ""), str(stored["app_token"])
    return Account(match[1] or "http", match[2], int(match[3]), app_id, token)


class Connection:
    """A session with one server."""

    def __init__(self, account: Account) -> None:
        import requests

        self.account = account
        self._session = requests.Session()
        # A server of this site is asked directly, without the proxies of the environment; as `flow` does it.
        self._session.trust_env = False
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True

    @property
    def address(self) -> str:
        """``host:port``."""
        return self.account.address

    def get(self, path: str, missing: Collection[int] = (), **params: Any) -> Optional[Dict[str, Any]]:
        """The whole answer to a question; None if the server gives one of the codes ``missing``.

        Raises:
            ExtensionError: E801, E804, E805, E806.
        """
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask("GET", path, ANSWER_SECONDS, missing, params=given)

    def post(self, path: str, body: Dict[str, Any], seconds: float = ANSWER_SECONDS) -> Dict[str, Any]:
        """The whole answer to a request.

        Raises:
            ExtensionError: E801, E804, E805, E806.
        """
        answer = self._ask("POST", path, seconds, (), json=body)
        assert answer is not None
        return answer

    def get_raw(self, path: str, **params: Any) -> Dict[str, Any]:
        """The mapping that some questions are answered with, without FATE Flow's frame of code and message.

        Raises:
            ExtensionError: E801, E804, and E806 if it is an error in that frame.
        """
        try:
            answer = self._send("GET", path, ANSWER_SECONDS, params=params).json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ExtensionError("E804", address=self.address, reason="its answer is no mapping")
        if isinstance(answer.get("code"), int):
            message = str(answer.get("message", ""))[:_MOST_OF_A_MESSAGE]
            raise ExtensionError("E806", address=self.address, call=path, number=answer["code"], message=message)
        return answer

    def download(self, path: str, file: IO[bytes], method: str = "GET", **arguments: Any) -> bool:
        """Write an archive that the server sends into a file; False if the server sends JSON instead: it has none.

        Raises:
            ExtensionError: E801, E804.
        """
        import requests

        asked = {"params": arguments} if method == "GET" else {"json": arguments}
        with closing(self._send(method, path, FEDERATED_SECONDS, stream=True, **asked)) as response:
            if "json" in response.headers.get("Content-Type", ""):
                return False
            expected, written = response.headers.get("Content-Length"), 0
            try:
                for chunk in response.iter_content(1 << 20):
                    written += file.write(chunk)
            except requests.RequestException as error:
                raise ExtensionError("E801", address=self.address, reason=_reason(error)) from error
            if expected is not None and written != int(expected):
                reason = f"it broke off after {written:,} of {int(expected):,} bytes"
                raise ExtensionError("E801", address=self.address, reason=reason)
        return True

    def _ask(
        self, method: str, path: str, seconds: float, missing: Collection[int], **arguments: Any
    ) -> Optional[Dict[str, Any]]:
        response = self._send(method, path, seconds, **arguments)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("code"), int):
            raise ExtensionError("E804", address=self.address, reason="its answer has no `code`")
        code, message = answer["code"], str(answer.get("message") or answer.get("retmsg") or "")
        if code == 0:
            return answer
        if code in missing:
            return None
        if code in _REFUSED_CLIENT or (code == _MALFORMED_CLIENT and re.search("appId|Signature|Nonce", message)):
            raise ExtensionError("E805", address=self.address, reason=f"code {code}, {message}")
        if answer.get("data"):
            message = f"{message} {answer['data']}"
        short = message[:_MOST_OF_A_MESSAGE].rstrip(". ")
        raise ExtensionError("E806", address=self.address, call=path, number=code, message=short, whole=message)

    def _send(self, method: str, path: str, seconds: float, stream: bool = False, **arguments: Any) -> Any:
        import requests

        account = self.account
        url = f"{account.scheme}://{account.address}{PREFIX}{path}"
        try:
            response = self._session.request(
                method,
                url,
                timeout=(CONNECT_SECONDS, seconds),
                allow_redirects=False,
                stream=stream,
                headers=_signature(account),
                **arguments,
            )
        except requests.RequestException as error:
            raise ExtensionError("E801", address=self.address, reason=_reason(error)) from error
        if response.status_code >= 500:  # mostly a gateway before a server that is down
            raise ExtensionError("E801", address=self.address, reason=f"HTTP status {response.status_code}")
        if response.status_code != 200:
            raise ExtensionError("E804", address=self.address, reason=f"HTTP status {response.status_code}")
        return response


def _signature(account: Account) -> Dict[str, str]:
    """FATE Flow's client authentication: two MD5 digests over id, time, a number and the token."""
    if not account.app_id:
        return {}
    nonce, timestamp = str(random.randint(1000, 9999)), f"{int(time.time())}000"
    inner = hashlib.md5(f"{account.app_id}{nonce}{timestamp}".encode(), usedforsecurity=False).hexdigest()
    signature = hashlib.md5(f"{inner}{account.token}".encode(), usedforsecurity=False).hexdigest()
    return {
        "appId": account.app_id,
        "userName": "",
        "Nonce": nonce,
        "Timestamp": timestamp,
        "Signature": signature,
    }


def _credentials() -> Tuple[str, str]:
    app_id, path = os.environ.get(APP_ID_VARIABLE, ""), os.environ.get(TOKEN_FILE_VARIABLE, "")
    if not app_id and not path:
        return "", ""
    if not app_id or not path:
        raise ExtensionError("E803", reason=f"{APP_ID_VARIABLE if path else TOKEN_FILE_VARIABLE} is not set")
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ExtensionError("E803", reason=f"the token cannot be read ({error})") from error
    if not token:
        raise ExtensionError("E803", reason=f"{path} is empty")
    return app_id, token


def _flow_init() -> Dict[str, Any]:
    """What FATE's client remembers, if it is installed here; it is not imported."""
    import yaml

    spec = importlib.util.find_spec("fate_client")
    if spec is None or spec.origin is None:
        return {}
    try:
        settings = yaml.safe_load(Path(spec.origin).with_name("settings.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    found = settings.get("flow_service") if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    """What a library error comes down to."""
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, requests.Timeout):
        return "it took the connection, and no answer came in time"
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return f"no TLS connection ({text})"[:300]
    known = re.search(
        r"Connection refused|Name or service not known|name resolution|No route to host|Network is unreachable|"
        r"Connection reset by peer|Connection aborted|Connection broken|Remote end closed connection",
        text,
    )
    return known[0].lower() if known else f"{type(error).__name__}: {text}"[:300]

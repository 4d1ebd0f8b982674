"""Site files: what belongs to a site and not to the job.

FATE Flow shows every party the whole DAG, so data paths, model folders, devices and secrets are
named there and resolved here, by the process that runs on the site. A site file is YAML and holds
either one site's settings or, for trials on one machine, one section per party::

    root: ../../../runs/quickstart        # optional; relative paths below start here
    guest_9999:
      tables: {llm/news: guest_9999}
      models: {slm: models/slm}
      public: {news_public: public}
      budgets: {llm/news: {epsilon: 8, delta: 1.0e-6}}
      device: cpu
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

import pydantic
from pydantic import Field
from typing_extensions import Literal

from fate_llm_ext.errors import ExtensionError

SITE_FILE_VARIABLE = "FATE_LLM_EXT_SITE"
ROOT_VARIABLE = "FATE_LLM_EXT_ROOT"
ONLY_DEVICE_VARIABLE = "FATE_LLM_EXT_ONLY_DEVICE"  # the `cuda:<index>` of which the process sees nothing else
DEFAULT_SITE_FILE = "~/.fate_llm_ext/site.yaml"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # nothing is fetched while a task runs


@dataclass(frozen=True)
class Budget:
    """What a site allows for one table, over all jobs: composed ε at δ."""

    epsilon: float
    delta: float


class SiteBudget(pydantic.BaseModel):
    """What all jobs together may release about one table. It stands here, where no job can widen it."""

    class Config:
        extra = "forbid"

    epsilon: float = Field(..., gt=0.0, description="ε of everything together; .inf also allows releases without DP.")
    delta: float = Field(..., gt=0.0, lt=1.0, description="δ of everything together, below 1 / records.")


@dataclass(frozen=True)
class Recording:
    """Answers that an LLM gave earlier: a folder with a file for each client."""

    folder: Path


class Endpoint(pydantic.BaseModel):
    """An OpenAI-compatible HTTP server that the site can reach: vLLM, SGLang, transformers serve, a provider."""

    class Config:
        extra = "forbid"

    url: str = Field(..., regex=r"^https?://", description="Up to and with the version, e.g. http://127.0.0.1:8000/v1.")
    model: Optional[str] = Field(None, description="Model name to ask for; default: the only one that it serves.")
    key_file: Optional[str] = Field(None, description="File that holds the API key and nothing else.")
    ca_file: Optional[str] = Field(None, description="Certificates to trust, for a server with one of your own.")
    api: Literal["completions", "chat"] = Field(
        "completions", description="completions: prompts are plain text; chat: the server adds the chat template."
    )
    top_k: bool = Field(
        True, description="The server knows top_k (vLLM, SGLang); false: it is not sent, the job's value has no effect."
    )
    concurrency: int = Field(8, ge=1, le=1024, description="Requests in flight.")
    requests_per_second: Optional[float] = Field(None, gt=0.0, description="Rate limit; default: none.")
    timeout_seconds: float = Field(120.0, gt=0.0, description="Longest wait for one answer.")
    deadline_seconds: float = Field(600.0, gt=0.0, description="Longest time for one text, all retries together.")
    retries: int = Field(5, ge=0, description="Retries of one request, with growing pauses.")

    @pydantic.validator("url")
    def _no_password(cls, url: str) -> str:
        """A user name in the URL would replace the key in each request, and stand in an error of the library."""
        if "@" in re.split("[/?#]", url.partition("//")[2], maxsplit=1)[0]:
            raise ValueError("no user name or password here; put the key into a file and name it as `key_file`")
        return url


class Site(pydantic.BaseModel):
    """One party's settings. Relative paths start at ``root``."""

    class Config:
        extra = "forbid"

    root: str = Field(".", description="Folder that relative paths start at.")
    tables: Dict[str, str] = Field(
        default_factory=dict, description="<namespace>/<name> -> file or folder (local engine)."
    )
    models: Dict[str, str] = Field(default_factory=dict, description="Model name -> Hugging Face folder.")
    public: Dict[str, str] = Field(default_factory=dict, description="Public set name -> file or folder.")
    endpoints: Dict[str, Endpoint] = Field(
        default_factory=dict, description="Name -> OpenAI-compatible HTTP server of an LLM."
    )
    recordings: Dict[str, str] = Field(
        default_factory=dict,
        description="Name -> folder with the recorded answers of an LLM, one file for each client.",
    )
    budgets: Dict[str, SiteBudget] = Field(
        default_factory=dict, description="<namespace>/<name> -> {epsilon, delta} for all jobs together."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<index>.")
    threads: Optional[int] = Field(None, ge=1, description="CPU threads of this party's process.")
    state: str = Field(
        "state",
        description="Folder for what outlives a task, the privacy ledger; in a file with sections: state/<party id>.",
    )

    def path(self, value: str) -> Path:
        """Absolute path of a value of the site file; ``~`` is the user's home."""
        return (Path(self.root).expanduser() / Path(value).expanduser()).resolve()

    def lookup(self, kind: str, name: str) -> Path:
        """The existing path under ``tables``, ``models``, ``public`` or ``recordings``.

        Raises:
            ExtensionError: E110 if the name is not in the site file, E111 if the path is missing.
        """
        known: Dict[str, str] = getattr(self, kind)
        if name not in known:
            raise ExtensionError("E110", kind=kind, name=name, known=", ".join(sorted(known)) or "nothing")
        path = self.path(known[name])
        if not path.exists():
            raise ExtensionError("E111", kind=kind, name=name, path=path)
        return path

    def lookup_llm(self, name: str, recorded: bool = False) -> Union[Path, Endpoint, Recording]:
        """The LLM of that name: the folder of a local model, an HTTP endpoint, or recorded answers.

        Args:
            recorded: the job is made for recorded answers, and says what each prompt is about.

        Raises:
            ExtensionError: E131 if the name is not under exactly one of ``models``, ``endpoints`` and ``recordings``,
                E769 if it is a recording and the job is not made for one, or the other way round, E111 if the path of
                model or recording is missing.
        """
        kinds: Dict[str, Mapping[str, Any]] = {
            "models": self.models,
            "endpoints": self.endpoints,
            "recordings": self.recordings,
        }
        found = [kind for kind, names in kinds.items() if name in names]
        if len(found) != 1:
            known = ", ".join(one for names in kinds.values() for one in sorted(names)) or "nothing"
            raise ExtensionError("E131", name=name, count=len(found), known=known)
        if (found[0] == "recordings") != recorded:
            words = ("an LLM that reads its prompts", "a recording")
            raise ExtensionError("E769", llm=name, found=words[not recorded], asked=words[recorded])
        if found[0] == "endpoints":
            return self.endpoints[name]
        path = self.lookup(found[0], name)
        return path if found[0] == "models" else Recording(path)

    def budget(self, table: str) -> Budget:
        """What may be released about a table, under differential privacy.

        Raises:
            ExtensionError: E616 if the site file allows nothing for it.
        """
        if table not in self.budgets:
            raise ExtensionError("E616", table=table, known=", ".join(sorted(self.budgets)) or "nothing")
        return self.all_budgets()[table]

    def budget_if_any(self, table: str) -> Optional[Budget]:
        """As :meth:`budget`, None without one; to show it. What may be released, the ledger decides by all budgets."""
        return self.all_budgets().get(table)

    def all_budgets(self) -> Dict[str, Budget]:
        """The budget of every table that has one; the ledger needs them all, for a job chooses the table's name."""
        return {table: Budget(epsilon=one.epsilon, delta=one.delta) for table, one in self.budgets.items()}

    def ledger(self) -> Path:
        """Folder of the privacy ledger, see :mod:`fate_llm_ext.privacy.ledger`."""
        return self.path(self.state) / "ledger"


def load_sites(path: Path, root: Optional[str] = None) -> Dict[str, Site]:
    """Read a site file: party name such as ``guest_9999`` -> its site.

    A file that holds one site only (its top-level keys are settings) gives the single key ``""``,
    which stands for whatever party runs there.

    Args:
        path: the YAML file.
        root: overrides the file's ``root``.

    Raises:
        ExtensionError: E112 if the file cannot be read, E113 with every problem of its content.
    """
    raw = _read_yaml(path)
    own_root = str(raw.pop("root", "."))
    base = own_root if root is None else root
    if not Path(base).expanduser().is_absolute():
        # A root from the command line is relative to where the user stands, one from the file to the file.
        base = str(((path.parent if root is None else Path.cwd()) / base).resolve())
    sections = raw if raw and all("_" in key and isinstance(value, dict) for key, value in raw.items()) else {"": raw}
    sites: Dict[str, Site] = {}
    problems: List[str] = []
    for party, section in sections.items():
        try:
            # Parties of one file share the root. A ledger is one party's, whatever role a job gives it.
            state = str(Path("state") / party.rpartition("_")[2])
            sites[party] = Site(**{"root": base, "state": state, **section})
        except pydantic.ValidationError as error:
            problems += [f"{party or path.name}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    problems += _share_budgets(sites)
    if problems:
        raise ExtensionError("E113", path=path, count=len(problems), problems="; ".join(problems))
    return sites


def current_site(role: str, party_id: str) -> Site:
    """The site of the party that runs in this process (variable ``FATE_LLM_EXT_SITE`` names the file)."""
    path = Path(os.environ.get(SITE_FILE_VARIABLE, DEFAULT_SITE_FILE)).expanduser()
    sites = load_sites(path, os.environ.get(ROOT_VARIABLE))
    party = f"{role}_{party_id}"
    site = sites.get(party) or sites.get("")
    if site is None:
        raise ExtensionError("E114", party=party, path=path, known=", ".join(sorted(sites)))
    return site


def cuda_environment(device: str, visible: Optional[str]) -> Dict[str, str]:
    """Variables that leave the process one device, as ``cuda:0``; libraries tend to take the first or all.

    Args:
        device: the site's setting; ``cuda:1`` is the second of the visible devices.
        visible: ``CUDA_VISIBLE_DEVICES`` here, None for all devices.
    """
    match = re.fullmatch(r"cuda:(\d+)", device)
    if match is None:
        return {}
    index = int(match[1])
    names = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    if names is not None and index >= len(names):
        return {}  # the party says so: E401
    name = str(index) if names is None else names[index]
    return {"CUDA_VISIBLE_DEVICES": name, ONLY_DEVICE_VARIABLE: device}


def _share_budgets(sites: Dict[str, Site]) -> List[str]:
    """Give all sections with one ledger the budgets of all; a job chooses the role in which a party runs."""
    shared: Dict[Path, Dict[str, SiteBudget]] = {}
    problems = []
    for party, site in sites.items():
        budgets = shared.setdefault(site.ledger(), {})
        for table, budget in site.budgets.items():
            if budgets.setdefault(table, budget) != budget:
                problems.append(
                    f"{party}.budgets.{table}: another section with the same ledger ({site.ledger()}) sets another one"
                )
    for site in sites.values():
        site.budgets = shared[site.ledger()]
    return problems


def _read_yaml(path: Path) -> Dict[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExtensionError("E112", path=path, reason=" ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        raise ExtensionError("E112", path=path, reason="it holds no mapping")
    return raw

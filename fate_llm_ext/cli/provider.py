"""`fate-llm-ext provider`: make the environment of FATE Flow's tasks and make it known to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

_folder = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
_python = click.option("--python", metavar="PATH", help="A Python 3.11 with venv; this one or python3.11 by default.")
_source = click.option(
    "--source", metavar="PATH", help="Checkout, wheel or sdist of fate-llm-ext; by default what this one was made of."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def provider() -> None:
    """Make the environment of FATE Flow's tasks and make it known to a server."""


@provider.command()
@_folder
@click.option("--server-python", required=True, metavar="PATH", help="The Python of FATE Flow's own environment.")
@click.option(
    "--environment",
    type=click.Path(file_okay=False, path_type=Path),
    help="Share this environment (of another provider of this machine) instead of making one.",
)
@click.option(
    "--wheelhouse",
    "wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Install from this folder and from no package index; see `provider wheelhouse`.",
)
@_source
@_python
def build(
    folder: Path,
    server_python: str,
    environment: Optional[Path],
    wheels: Optional[Path],
    source: Optional[str],
    python: Optional[str],
) -> None:
    """Make FOLDER the provider of a server: an environment beside the server's own, and links to the server's code.

    The server's environment stays as it is. Repeats complete what is missing and cost seconds where nothing is.
    """
    from fate_llm_ext.flow import provider as flow

    made = flow.build(
        folder, server_python, _say, python=python, environment=environment, wheelhouse=wheels, source=source
    )
    _say(f"next: fate-llm-ext provider register {made.folder}")


@provider.command()
@_folder
@click.option("--server", metavar="HOST:PORT", help="By default the server that FOLDER was built for.")
@click.option("--default", is_flag=True, help="Also make it the provider of tasks that name none (service_conf.yaml).")
def register(folder: Path, server: Optional[str], default: bool) -> None:
    """Make the provider in FOLDER known to a running server, and verify what the server has understood."""
    from fate_llm_ext.flow import provider as flow

    flow.register(folder, server, _say, default=default)


@provider.command()
@_folder
@_source
@_python
def wheelhouse(folder: Path, source: Optional[str], python: Optional[str]) -> None:
    """Fill FOLDER with wheels of all that a site without network needs: FATE Flow, the provider, this package.

    Run it on a machine of the same kind (system, processor) with network and, for what has no wheel, a C++ compiler.
    """
    from fate_llm_ext.flow import environment

    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = environment.find_python(python)
    files = environment.wheelhouse(folder, chosen, source or environment.own_source(), _say)
    size = sum((folder / name).stat().st_size for name in files) / 1e6
    _say(f"ready: {len(files)} files, {size:.0f} MB; at the site: sha256sum -c SHA256SUMS")
    _say("next: fate-llm-ext provider build FOLDER --server-python PATH --wheelhouse DIR")


def _say(line: str) -> None:
    click.echo(f"provider: {line}")

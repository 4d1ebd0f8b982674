"""Entry point of the `fate-llm-ext` command: a click group that imports a subcommand on use only."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Dict, List, Optional, Tuple

import click

from fate_llm_ext import __version__
from fate_llm_ext.errors import ExtensionError

# name -> (module:attribute, one-line help). The help stands here so that `--help` imports nothing.
_COMMANDS: Dict[str, Tuple[str, str]] = {
    "run": ("fate_llm_ext.cli.run:run", "Run a job on this machine, one process per party."),
    "report": ("fate_llm_ext.cli.report:report", "Print the results of runs and write their page."),
    "check": ("fate_llm_ext.cli.check:check", "Report every problem of a job before anything runs."),
    "privacy": (
        "fate_llm_ext.cli.privacy:privacy",
        "What a job would cost, what was spent, whether ledgers are whole.",
    ),
    "desc": ("fate_llm_ext.cli.desc:desc", "Describe a component and its parameters."),
    "doctor": ("fate_llm_ext.cli.doctor:doctor", "Say what is installed, what is wrong with it and how to repair it."),
    "submit": ("fate_llm_ext.cli.submit:submit", "Submit a job to FATE Flow, to run between its sites."),
    "status": ("fate_llm_ext.cli.jobs:status", "How jobs of FATE Flow stand; watch one to its end."),
    "logs": ("fate_llm_ext.cli.jobs:logs", "Print the logs of a job's tasks at this site."),
    "stop": ("fate_llm_ext.cli.jobs:stop", "End a job of FATE Flow at all its sites."),
    "rerun": ("fate_llm_ext.cli.jobs:rerun", "Start again what did not end well of a job."),
    "fetch": ("fate_llm_ext.cli.jobs:fetch", "Fetch models, metrics and logs of a job from this site's FATE Flow."),
    "provider": (
        "fate_llm_ext.cli.provider:provider",
        "Make the environment of FATE Flow's tasks, make it known to a server.",
    ),
    "data": ("fate_llm_ext.cli.data:data", "Show, fingerprint, split and generate data sets."),
    "models": ("fate_llm_ext.cli.models:models", "Make tiny models for trials and tests."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ExtensionError as error:
            click.echo(str(error), err=True)
            ctx.exit(1)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fate-llm-ext")
def main() -> None:
    """Federated language-model algorithms on FATE: run, check and prepare jobs."""


if __name__ == "__main__":
    sys.exit(main())

"""`fate-llm-ext desc`: components and their parameters, from FATE's own component objects."""

from __future__ import annotations

from typing import Optional

import click


@click.command()
@click.argument("component", required=False)
@click.option("--yaml", "as_yaml", is_flag=True, help="FATE's own form, as client definitions use it.")
def desc(component: Optional[str], as_yaml: bool) -> None:
    """Describe COMPONENT and its parameters; without a name, list the components."""
    from fate_llm_ext.pipelines import catalog

    if component is None:
        found, broken = catalog.plugins()
        for name, one in sorted(found.items()):
            click.echo(f"{name:<20} {(one.description or '').splitlines()[0] if one.description else ''}".rstrip())
        for name, reason in sorted(broken.items()):
            click.echo(f"{name:<20} cannot be imported: {reason}")
        click.echo("FATE's own: " + ", ".join(sorted(catalog.builtin_names())))
        return
    whole = catalog.component(component)
    if as_yaml:
        click.echo(whole.dump_yaml(), nl=False)
        return
    _table(whole)


def _table(whole: object) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fate_llm_ext.pipelines.describe import artifact_rows, parameter_rows, title

    console = Console()
    console.print(title(whole), highlight=False, markup=False)
    parameters = Table("parameter", "type", "default", "range", "help", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in parameter_rows(whole):
        name = ("  " if "." in row.name else "") + row.name
        cells = (name, row.type, row.default, row.range, row.help)
        parameters.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console.print(parameters)
    artifacts = Table("artifact", "type", "stages", "roles", "help", box=box.SIMPLE_HEAD, pad_edge=False)
    for cells in artifact_rows(whole):
        artifacts.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console.print(artifacts)

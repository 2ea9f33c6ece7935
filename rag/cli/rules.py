"""`bulkhead models rules`: which calls need how much of a model, as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.catalogue.operator import CatalogueOperator
from rag.catalogue.store import read_rules
from rag.cli.common import json_option, operator, print_json, results, settings_of
from rag.cli.route import read_rules_file
from rag.installation import installation
from rag.llm.routing import Rule
from rag.settings import Settings

__all__ = ["rules"]


@click.group()
def rules() -> None:
    """Show and replace the rules that say which calls need how much of a model."""


@rules.command("show")
@json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Show the rules. With --json in the form that `set` and `bulkhead route --rules` read."""
    with installation(settings_of(context)) as settings:
        found = anyio.run(_read, settings)
    if as_json:
        print_json([rule.as_dict() for rule in found])
        return
    table = Table("rule", "needs", "when", box=None, padding=(0, 2, 0, 0))
    for rule in found:
        when = json.dumps(rule.when.as_dict(), ensure_ascii=False) if rule.when.as_dict() else "always"
        table.add_row(escape(rule.name), rule.tier.name.lower(), escape(when))
    results().print(table)


@rules.command("set")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_context
def set_(context: click.Context, file: Path) -> None:
    """Replace all rules by those of FILE; workers follow within half a minute. See `bulkhead route --replay` first."""
    told = read_rules_file(file)
    with installation(settings_of(context)) as settings:
        anyio.run(_set, settings, told)
    click.echo(f"set {len(told)} rules")


async def _read(settings: Settings) -> Sequence[Rule]:
    async with operator(settings) as verbs:
        return await read_rules(verbs.database)


async def _set(settings: Settings, told: Sequence[Rule]) -> None:
    async with operator(settings) as verbs:
        await CatalogueOperator(database=verbs.database).set_rules(told)

"""`bulkhead audit`: whether the trail is whole, what is in it, and a copy to hand over.

Below: `rag.audit.reader`, as the maintenance login. The anchors that `verify` prints are worth something only where
whoever administers the database cannot change them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TextIO
from uuid import UUID

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.audit.chain import Anchor, Record, as_dict, parse_anchor
from rag.audit.reader import PAGE, AuditReader, Chain, Verdict
from rag.cli.common import ERRORS, as_json, json_option, operator, print_json, results, settings_of
from rag.cli.files import MOMENT, csv_line, new_file
from rag.errors import InvalidInput, NotFound
from rag.installation import installation
from rag.settings import Settings
from rag.tenants.operator import Operator

__all__ = ["audit"]

PROGRESS_EVERY = 50 * PAGE
COLUMNS = ("at", "subject", "method", "target", "outcome", "documents", "repeats")


@click.group()
def audit() -> None:
    """Verify, export and read the audit trail."""


@audit.command("verify")
@click.argument("reference", metavar="TENANT", required=False)
@click.option(
    "--expect", metavar="SEQ:HASH", help="An anchor that was kept elsewhere: the chain must have this very row."
)
@json_option
@click.pass_context
def verify(context: click.Context, reference: str | None, expect: str | None, as_json: bool) -> None:
    """Check every row of TENANT's chain, or of all chains; status 1 and the first bad row where one is broken.

    Keep the SEQ:HASH that this prints outside of the database: with --expect it shows that nothing up to that row was
    rewritten since.
    """
    if expect is not None and reference is None:
        raise InvalidInput("--expect belongs to one chain: name its tenant")
    expected = None if expect is None else parse_anchor(expect)
    with installation(settings_of(context)) as settings:
        verdicts = anyio.run(_verify, settings, reference, expected)
    if as_json:
        print_json([_verdict_dict(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            click.echo(_verdict_line(verdict))
    if any(verdict.fault for verdict in verdicts):
        sys.exit(1)


@audit.command("export")
@click.argument("reference", metavar="TENANT")
@click.option("--since", type=MOMENT, help="From this time on, such as 2026-01-31 or 2026-01-31T12:00:00Z (UTC).")
@click.option("--until", type=MOMENT, help="Before this time.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="jsonl can be verified without us (docs/audit.md); csv is for reading in a spreadsheet.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A new file, which only you can read. Default: standard output.",
)
@click.pass_context
def export(
    context: click.Context,
    reference: str,
    since: datetime | None,
    until: datetime | None,
    form: str,
    output: Path | None,
) -> None:
    """Write TENANT's rows, in their order."""
    with installation(settings_of(context)) as settings, new_file(output) as file:
        rows = anyio.run(_export, settings, reference, since, until, form, file)
    if output is not None:
        click.echo(f"wrote {rows} rows to {output}")


@audit.command("tail")
@click.argument("reference", metavar="TENANT")
@click.option("-n", "wanted", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many rows.")
@json_option
@click.pass_context
def tail(context: click.Context, reference: str, wanted: int, as_json: bool) -> None:
    """Show TENANT's last rows."""
    with installation(settings_of(context)) as settings:
        records = anyio.run(_tail, settings, reference, wanted)
    if as_json:
        print_json([as_dict(record) for record in records])
        return
    table = Table("seq", *COLUMNS, box=None, padding=(0, 2, 0, 0))
    for record in records:
        shown = {**as_dict(record), "at": f"{record.at:%Y-%m-%d %H:%M:%S}", "documents": record.document_count}
        if record.actor is not None:
            shown["subject"] = f"{record.subject} by {record.actor}"
        table.add_row(str(record.seq), *(escape(str(shown[name])) for name in COLUMNS))
    results().print(table)


async def _verify(settings: Settings, reference: str | None, expected: Anchor | None) -> list[Verdict]:
    async with operator(settings) as verbs:
        reader = AuditReader(database=verbs.database)
        chains = await reader.chains() if reference is None else [await _chain(verbs, reader, reference)]

        def tell(rows: int) -> None:
            if rows % PROGRESS_EVERY == 0:
                ERRORS.print(f"{rows} rows are right so far")

        return [await reader.verify(chain, expected=expected, progress=tell) for chain in chains]


async def _export(
    settings: Settings, reference: str, since: datetime | None, until: datetime | None, form: str, file: TextIO
) -> int:
    async with operator(settings) as verbs:
        reader = AuditReader(database=verbs.database)
        chain = await _chain(verbs, reader, reference)
        lines = _csv if form == "csv" else _jsonl
        written = -1 if form == "csv" else 0  # its first line is no row
        async for line in lines(reader.rows(chain.tenant_id, since=since, until=until)):
            file.write(line)
            written += 1
        return written


async def _tail(settings: Settings, reference: str, wanted: int) -> list[Record]:
    async with operator(settings) as verbs:
        reader = AuditReader(database=verbs.database)
        return await reader.tail((await _chain(verbs, reader, reference)).tenant_id, wanted)


async def _chain(verbs: Operator, reader: AuditReader, reference: str) -> Chain:
    """Return the chain of a tenant by its name or id; one that is gone has only its id."""
    try:
        tenant = await verbs.find_tenant(reference)
    except NotFound:
        tenant_id = _id(reference)
        gone = [] if tenant_id is None else await reader.chains(tenant_id)
        if not gone:
            raise
        return gone[0]
    found = await reader.chains(tenant.tenant_id)
    return found[0] if found else Chain(tenant_id=tenant.tenant_id, name=tenant.name, head=None, last_seq=0)


def _id(reference: str) -> UUID | None:
    try:
        return UUID(reference)
    except ValueError:
        return None


async def _jsonl(records: AsyncIterator[Record]) -> AsyncIterator[str]:
    async for record in records:
        yield as_json(as_dict(record)) + "\n"


async def _csv(records: AsyncIterator[Record]) -> AsyncIterator[str]:
    yield csv_line(Record.__slots__)
    async for record in records:
        yield csv_line(as_dict(record).values())


def _verdict_line(verdict: Verdict) -> str:
    name = verdict.chain.name or str(verdict.chain.tenant_id)
    if verdict.fault is not None:
        return f"{name}: broken at row {verdict.fault.seq}: {verdict.fault.reason}"
    if verdict.anchor is None:
        return f"{name}: no rows"
    return f"{name}: {verdict.anchor.seq} rows are right; anchor {verdict.anchor}"


def _verdict_dict(verdict: Verdict) -> Mapping[str, object]:
    fault = verdict.fault
    return {
        "tenant_id": str(verdict.chain.tenant_id),
        "name": verdict.chain.name,
        "whole": fault is None,
        "anchor": None if verdict.anchor is None else str(verdict.anchor),
        "fault": None if fault is None else {"seq": fault.seq, "reason": fault.reason},
    }

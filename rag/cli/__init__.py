"""The `bulkhead` command. One file per group of verbs; this one only gathers them."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from rag.cli.ask import ask
from rag.cli.audit import audit
from rag.cli.common import reporting_errors
from rag.cli.demo import demo
from rag.cli.doctor import doctor
from rag.cli.embeddings import embeddings
from rag.cli.evaluate import evaluate
from rag.cli.ingest import ingest
from rag.cli.maintain import maintenance
from rag.cli.push import push
from rag.cli.schedule import schedule
from rag.cli.search import search
from rag.cli.secrets import secrets
from rag.cli.tenants import tenant, token
from rag.cli.up import migrate, up

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bulkhead")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the embedded database and its secrets live. Default: .bulkhead, or BULKHEAD_DATA_DIR.",
)
def cli(data_dir: Path | None) -> None:
    """Tenant-isolated hybrid search over MCP, and durable agent tasks over A2A."""
    del data_dir  # read by settings_of from the root context


for _command in (
    up,
    demo,
    migrate,
    tenant,
    token,
    ingest,
    search,
    ask,
    audit,
    doctor,
    embeddings,
    evaluate,
    maintenance,
    push,
    schedule,
    secrets,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line. SIGTERM ends a verb as Ctrl-C does, so that it stops what it has started."""
    signal.signal(signal.SIGTERM, _interrupt)
    with reporting_errors():
        cli()


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.raise_signal(signal.SIGINT)

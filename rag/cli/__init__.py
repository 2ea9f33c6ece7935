"""The `bulkhead` command. One file per group of verbs; this one only gathers them.

A verb's file is imported when the verb is called: all of them together, with the clients of two protocols, take longer
than most verbs do.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType

import click

from rag.cli.common import reporting_errors

__all__ = ["VERBS", "Verb", "cli", "main"]


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb is defined, and what the list of verbs says of it."""

    module: str
    attribute: str
    summary: str
    """As the verb itself has it (tests/unit/test_cli_verbs.py)."""


VERBS: Mapping[str, Verb] = {
    "ask": Verb("ask", "ask", "Have QUESTION answered from a tenant's documents, with checked citations."),
    "audit": Verb("audit", "audit", "Verify, export and read the audit trail."),
    "bench": Verb("bench", "bench", "Measure a model server."),
    "budget": Verb("budget", "budget", "Set what tenants may spend on models, and see what is left."),
    "demo": Verb("demo", "demo", "Show the whole job on real text, in minutes."),
    "doctor": Verb("doctor", "doctor", "Check every dependency and say what to do."),
    "embeddings": Verb("embeddings", "embeddings", "Show and change the embedding models of tenants."),
    "eval": Verb("evaluate", "evaluate", "Measure search on DIR, a collection in the BEIR layout."),
    "ingest": Verb("ingest", "ingest", "Take files, folders and globs into a tenant's collection."),
    "maintain": Verb("maintain", "maintenance", "Build and drop the vector indexes of large tenants, until stopped."),
    "migrate": Verb("up", "migrate", "Bring the database to this version's schema."),
    "models": Verb(
        "models",
        "models",
        "Keep the catalogue of chat models: where they are, what they cost, who may use them.",
    ),
    "push": Verb("push", "push", "See and revive webhooks of tasks that were given up."),
    "route": Verb(
        "route",
        "route",
        "Explain which model a question goes to, or replay recorded traffic by other rules.",
    ),
    "schedule": Verb("schedule", "schedule", "Have tasks started again and again, by the clock."),
    "search": Verb(
        "search",
        "search",
        "Search a tenant's collection for QUERY; words in double quotes must occur as a phrase.",
    ),
    "secrets": Verb("secrets", "secrets", "Make and rotate the secret files of a deployment."),
    "tenant": Verb("tenants", "tenant", "Create, list and set up tenants."),
    "token": Verb("tenants", "token", "Print a token and nothing else, or revoke tokens."),
    "up": Verb("up", "up", "Start everything, and leave it running."),
    "usage": Verb("usage", "usage", "Show what a tenant has spent on models, or export every call."),
}


class _Verbs(click.Group):
    """Knows its verbs by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs' names."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the verb of a name; None where there is none."""
        del ctx
        verb = VERBS.get(cmd_name)
        return None if verb is None else getattr(import_module(f"rag.cli.{verb.module}"), verb.attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


def main() -> None:
    """Run the command line. SIGTERM ends a verb as Ctrl-C does, so that it stops what it has started."""
    signal.signal(signal.SIGTERM, _interrupt)
    with reporting_errors():
        cli()


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.raise_signal(signal.SIGINT)

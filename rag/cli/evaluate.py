"""`bulkhead eval`: how well and how fast this installation finds, on a collection with judgements.

Below: `rag.evaluation`, which does it on the installation's own database through the same put, embedding and search as
any client's. Nothing is asked of the servers; they may run beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from rag.cli.common import ERRORS, interruptible, json_option, operator, print_json, results, settings_of
from rag.evaluation.collection import Collection, read_collection
from rag.evaluation.job import Job, Outcome, run_job
from rag.evaluation.load import Progress as Report
from rag.evaluation.measures import MEASURES
from rag.evaluation.tuning import Tuning
from rag.identity.scopes import Audience
from rag.installation import installation
from rag.runtime import open_runtime
from rag.settings import Settings

__all__ = ["evaluate"]

APPLICATION = "bulkhead-eval"
RESULTS = Path("eval-results")
GIT_BOUND_S = 10.0


@click.command("eval")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@click.option("--limit-queries", type=click.IntRange(min=1), default=None, help="Ask only so many, drawn by a seed.")
@click.option("--tenant", default=None, help="Ask a tenant that holds the documents already; nothing is written.")
@click.option("--keep", is_flag=True, help="Leave the documents in the scratch tenant; the next run is quicker.")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads of the local embedding model.")
@click.option("--phrases", is_flag=True, help="Quotes in a question ask for a phrase, as in a client's search.")
@click.option("--tune", is_flag=True, help="Find the weights of words and vectors for these questions.")
@click.option("--apply", "store", is_flag=True, help="With --tune and --tenant: store the weights if they do not lose.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write the results. Default: ./eval-results/<collection>-<date>.json.",
)
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    folder: Path,
    split: str,
    limit_queries: int | None,
    tenant: str | None,
    keep: bool,
    threads: int | None,
    phrases: bool,
    tune: bool,
    store: bool,
    results: Path | None,
    as_json: bool,
) -> None:
    """Measure search on DIR, a collection in the BEIR layout.

    DIR holds corpus.jsonl, queries.jsonl (each may end in .gz) and qrels/test.tsv. The documents go into a scratch
    tenant, every question is asked of the words, of the vectors and of both, and the documents are removed again.
    """
    if store and not (tune and tenant):
        raise click.UsageError("--apply needs --tune and --tenant")
    collection = read_collection(folder, split=split)
    if limit_queries is not None:
        collection = collection.limited(limit_queries)
    job = Job(collection=collection, tenant=tenant, keep=keep, tune=tune, phrases=phrases, store=store)
    began = datetime.now(UTC)
    settings = settings_of(context)
    if threads is not None:
        settings = dataclasses.replace(settings, embedder_threads=threads)
    with installation(settings) as ready, _bar() as report:
        outcome = anyio.run(_evaluate, ready, job, report)
    result = {**outcome.report, **_provenance(began), "notes": list(outcome.notes)}
    path = results or RESULTS / f"{collection.name}-{began:%Y%m%dT%H%M%SZ}.json"
    _write(path, result)
    if as_json:
        print_json(result)
    else:
        _show(collection, outcome, path)
        if store and outcome.tuning is not None:
            click.echo("the tenant has these weights now" if outcome.tuning.safe else "the tenant's weights stay")


async def _evaluate(settings: Settings, job: Job, report: Report) -> Outcome:
    async with (
        interruptible(),
        open_runtime(settings, audience=Audience.MCP, application=APPLICATION) as runtime,
        operator(settings) as verbs,
    ):
        return await run_job(runtime, verbs, job, progress=report)


@contextmanager
def _bar() -> Generator[Report]:
    """Yield what shows progress on standard error, where that is a terminal: one line for each stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=ERRORS, disable=not sys.stderr.isatty()) as progress:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


def _provenance(began: datetime) -> dict[str, object]:
    return {
        "date": began.isoformat(timespec="seconds"),
        "version": version("bulkhead"),
        **_commit(Path(__file__).parents[2]),
        "cpus": os.cpu_count(),
    }


def _commit(root: Path) -> dict[str, object]:
    """Return the commit of the code and whether it was changed since; nothing where it is no checkout, or git fails."""
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "changed_since_commit": changed}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_BOUND_S, check=True
    )
    return done.stdout.strip()


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _show(collection: Collection, outcome: Outcome, path: Path) -> None:
    console = results()
    report: Any = outcome.report
    documents = report["documents"]["stored"]
    table = Table(
        title=f"{escape(collection.name)}: {report['questions']} questions, {documents} documents", title_justify="left"
    )
    for column in ("leg", *MEASURES, "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "leg" else "right")
    for leg, measures in report["legs"].items():
        latency = report["latency_ms_by_leg"][leg]
        table.add_row(
            leg,
            *(f"{measures[name]:.4f}" for name in MEASURES),
            *(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99")),
        )
    console.print(table)
    if outcome.tuning is not None:
        _show_tuning(outcome.tuning, console)
    for note in outcome.notes:
        ERRORS.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    click.echo(f"written to {path}")


def _show_tuning(tuning: Tuning, console: Console) -> None:
    lexical, dense = tuning.weights
    low, high = tuning.interval
    by_fold = ", ".join(f"{share:g}" for share in tuning.chosen_by_fold)
    console.print(
        f"weights chosen on all {tuning.questions} questions among {tuning.tried} settings: "
        f"bm25 {lexical:g}, vectors {dense:g} (by fold: {by_fold})\n"
        f"nDCG@10 on questions they were not chosen on: {tuning.out_of_fold:.4f}; "
        f"default weights: {tuning.default:.4f}; "
        f"difference {tuning.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}\n"
        + ("the interval excludes a loss" if tuning.safe else "no gain is shown: keep the default weights"),
        soft_wrap=True,
    )

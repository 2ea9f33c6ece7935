"""`bulkhead bench`: measure what an installation stands on. `llm`: how fast a model server answers, at what cost.

Below: `rag.llm.bench`, which does it by the wire alone. The gateway is not in it: what is measured is the server, and
no tenant's budget pays.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import ssl
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import click
import httpx
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rag.cli.bench_machine import machine, provenance
from rag.cli.bench_report import Measurement, notes, result, table
from rag.cli.bench_target import AUTO, KINDS, Target, offer_of
from rag.cli.common import ERRORS, interruptible, json_option, print_json, results, settings_of
from rag.errors import InvalidInput, Misconfigured, Unavailable
from rag.llm.bench.figures import LevelRecord, figures
from rag.llm.bench.measure import MIN_REQUESTS, PER_PLACE, Plan, Report, measure, warm_up
from rag.llm.bench.prompts import MAX_WORDS, PromptShape
from rag.llm.bench.server import ServerFacts, server_facts
from rag.llm.catalogue import Offer
from rag.settings import Settings

__all__ = ["bench"]

RESULTS = Path("results")
MAX_CONCURRENCY = 1024
INTERRUPTED = 130
"""The status of a command that Ctrl-C has ended, as shells have it."""
_PLACES = 6
_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9.]+")


class _Amounts(click.ParamType[tuple[Decimal, ...]]):
    """Amounts of money, separated by commas: decimals, none of them below 0, with at most six places."""

    name = "amounts"

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Decimal, ...]:
        try:
            amounts = tuple(Decimal(part.strip()) for part in str(value).split(","))
        except InvalidOperation:
            self.fail("an amount is a decimal number, such as 0.15", param, ctx)
        if not self._least <= len(amounts) <= self._most:
            self.fail(f"give {self._least} to {self._most} amounts, separated by commas", param, ctx)
        for amount in amounts:
            if not amount.is_finite() or amount < 0 or amount != round(amount, _PLACES):
                self.fail(f"an amount is at least 0 and has at most {_PLACES} places", param, ctx)
        return amounts


class _Concurrencies(click.ParamType[tuple[int, ...]]):
    """Numbers of calls at a time, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= MAX_CONCURRENCY for part in parts):
            self.fail(f"give numbers from 1 to {MAX_CONCURRENCY}, separated by commas", param, ctx)
        return tuple(map(int, parts))


@click.group()
def bench() -> None:
    """Measure a model server."""


@bench.command()
@click.option("--url", metavar="URL", help="The server: an OpenAI-compatible base URL ending in /v1.")
@click.option("--model", metavar="NAME", help="With --url: the model's name there.")
@click.option("--api-key-file", "key_file", type=click.File("rb"), help="With --url: where its key is; - for stdin.")
@click.option("--offer", metavar="MODEL[@ENDPOINT]", help="A model of the catalogue instead, with its price.")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=AUTO,
    show_default=True,
    help="What the server is. auto: vllm where it has vLLM's counters, else as configured.",
)
@click.option(
    "--concurrency",
    "concurrencies",
    type=_Concurrencies(),
    default="1,4,16",
    show_default=True,
    help="Calls at a time: a level for each number.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    help=f"Calls of each level. Default: {MIN_REQUESTS}, and at least {PER_PLACE} for each one at a time.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    default=120.0,
    show_default=True,
    help="After which a level begins no further call.",
)
@click.option("--max-tokens", type=click.IntRange(1, 1_000_000), default=128, show_default=True, help="Of an answer.")
@click.option(
    "--shared-words",
    type=click.IntRange(0, MAX_WORDS),
    default=600,
    show_default=True,
    help="Words at the beginning that all prompts of a tenant share.",
)
@click.option(
    "--own-words", type=click.IntRange(0, MAX_WORDS), default=200, show_default=True, help="Words that each has alone."
)
@click.option(
    "--tenants",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Tenants that ask in turn, each with a beginning, and at vLLM a cache salt, of its own.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the prompts' words.")
@click.option(
    "--warm-up", "warm_ups", type=click.IntRange(0, 1000), default=3, show_default=True, help="Calls that do not count."
)
@click.option(
    "--price",
    type=_Amounts(3, 4),
    metavar="INPUT,CACHED,OUTPUT[,SECOND]",
    help="For a million tokens of each kind, and for a second of a call. Default: the catalogue's.",
)
@click.option("--machine-hour", type=_Amounts(1, 1), metavar="AMOUNT", help="What the server's machine costs an hour.")
@click.option("--remark", "remarks", multiple=True, help="About the server, for the file; may be repeated.")
@click.option(
    "--results",
    "path",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=None,
    help="Where to write the results. Default: ./results/llm-<model>-<date>.json.",
)
@json_option
@click.pass_context
def llm(
    context: click.Context,
    url: str | None,
    model: str | None,
    key_file: BinaryIO | None,
    offer: str | None,
    kind: str,
    concurrencies: tuple[int, ...],
    requests: int | None,
    seconds: float,
    max_tokens: int,
    shared_words: int,
    own_words: int,
    tenants: int,
    seed: int,
    warm_ups: int,
    price: tuple[Decimal, ...] | None,
    machine_hour: tuple[Decimal, ...] | None,
    remarks: tuple[str, ...],
    path: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast a model server answers, and for how much.

    Time to the first token, time between tokens, tokens a second, the share of the prefix cache and the cost of 1000
    calls, for each number of calls at a time. The calls are real: a server that is paid by the token is paid. Ctrl-C
    keeps what was measured.
    """
    settings = settings_of(context)
    target = Target(url=url, model=model, offer=offer, kind=kind, key_file=key_file, price=price)
    chosen = offer_of(settings, target)
    began = datetime.now(UTC)
    path = path or RESULTS / f"llm-{_NO_FILE_NAME.sub('-', chosen.served_name)}-{began:%Y%m%dT%H%M%SZ}.json"
    _make_folder(path)
    shape = PromptShape(seed=seed, shared_words=shared_words, own_words=own_words, tenants=tenants)
    plan = Plan(
        run=secrets.token_hex(4),
        shape=shape,
        max_tokens=max_tokens,
        warm_up=warm_ups,
        requests=requests,
        seconds=seconds,
    )
    facts_of_machine = machine(), provenance()
    with _bar(plan) as report:
        run = anyio.run(_run, settings, _Job(chosen, kind, plan, concurrencies), report)
    hour = machine_hour[0] if machine_hour else None
    levels = tuple(figures(record, price=chosen.price, machine_hour=hour) for record in run.records if record.started)
    done = Measurement(
        offer=run.offer,
        facts=run.facts,
        plan=plan,
        concurrencies=concurrencies,
        machine_hour=hour,
        remarks=remarks,
        began=began,
        ended=datetime.now(UTC),
        levels=levels,
    )
    content = result(done, machine=facts_of_machine[0], provenance=facts_of_machine[1])
    _write(path, content)
    if as_json:
        print_json(content)
    else:
        _show(done, path)
    if run.interrupted:
        context.exit(INTERRUPTED)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    offer: Offer
    kind: str
    plan: Plan
    concurrencies: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    offer: Offer
    facts: ServerFacts
    records: list[LevelRecord]
    interrupted: bool


async def _run(settings: Settings, job: _Job, report: Report) -> _Run:
    records: list[LevelRecord] = []
    interrupted = False
    async with _client(settings, connections=max(job.concurrencies)) as client:
        facts = await server_facts(client, job.offer.endpoint)
        offer = _of_kind(job.offer, "vllm") if job.kind == AUTO and facts.counters else job.offer
        try:
            async with interruptible():
                await warm_up(client, offer, job.plan)
                await measure(client, offer, job.plan, concurrencies=job.concurrencies, records=records, report=report)
        except click.Abort:
            interrupted = True
    if not any(record.calls for record in records):
        if interrupted:
            raise click.Abort
        failures = [what for record in records for what in record.failures]
        raise Unavailable(f"the model server answered no request: {failures[0]}")
    return _Run(offer=offer, facts=facts, records=records, interrupted=interrupted)


def _of_kind(offer: Offer, kind: str) -> Offer:
    return dataclasses.replace(offer, endpoint=dataclasses.replace(offer.endpoint, kind=kind))


def _client(settings: Settings, *, connections: int) -> httpx.AsyncClient:
    """Return a client that keeps one connection for each call at a time: making one is no part of the figures.

    Raises:
        Misconfigured: BULKHEAD_CA_CERTIFICATE cannot be used.
    """
    context = ssl.create_default_context()
    if settings.ca_certificate is not None:
        try:
            context.load_verify_locations(cafile=str(settings.ca_certificate))
        except OSError as exc:  # ssl.SSLError is one
            raise Misconfigured("BULKHEAD_CA_CERTIFICATE does not name a readable file of PEM certificates") from exc
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=None)
    return httpx.AsyncClient(verify=context, limits=limits)


def _make_folder(path: Path) -> None:
    """Find out before the minutes of measuring, not after them, that there is no place for the results."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidInput("the folder of the results cannot be made; name another file with --results") from exc


def _write(path: Path, content: dict[str, object]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:  # what took minutes, and perhaps money, is not lost with a full disk
        print_json(content)
        raise InvalidInput("the results could not be written to their file, and were printed instead") from exc


@contextmanager
def _bar(plan: Plan) -> Generator[Report]:
    """Yield what shows progress on standard error, where that is a terminal: one line for each level."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[int, TaskID] = {}
    with Progress(*columns, console=ERRORS, disable=not sys.stderr.isatty()) as progress:

        def report(record: LevelRecord) -> None:
            if id(record) not in tasks:
                name = f"{record.concurrency} at a time"
                tasks[id(record)] = progress.add_task(name, total=plan.requests_at(record.concurrency))
            ended = len(record.calls) + record.failures.total()
            progress.update(tasks[id(record)], completed=ended)

        yield report


def _show(done: Measurement, path: Path) -> None:
    results().print(table(done))
    for note in notes(done):
        ERRORS.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    click.echo(f"written to {path}")

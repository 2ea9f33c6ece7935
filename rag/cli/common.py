"""What all verbs share: settings, tokens for our own servers, output, and errors that say what to do.

Above: one file per group of verbs. Below: `rag.installation`, `rag.runtime`.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import re
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import anyio
import click
from rich.console import Console
from rich.markup import escape

from rag.db.pool import open_database
from rag.errors import BulkheadError, InvalidInput, Misconfigured, NotFound, Unavailable
from rag.identity.scopes import Audience, Scope
from rag.installation import installation
from rag.runtime import first_of_ours, token_issuer
from rag.settings import Settings
from rag.tenants.operator import Operator

__all__ = [
    "ERRORS",
    "WEIGHT",
    "Caller",
    "as_json",
    "caller_options",
    "caller_token",
    "interruptible",
    "json_option",
    "login_name",
    "operator",
    "options_of",
    "print_json",
    "printable",
    "reporting_errors",
    "results",
    "settings_of",
]

P = ParamSpec("P")
R = TypeVar("R")

ERRORS = Console(stderr=True, highlight=False)
"""Progress and complaints; standard output is for results."""
PIPE_WIDTH = 160
"""Columns of a table that no terminal shows: wide enough for a row to stay a line."""
CLI_TOKEN_LIFETIME_S = 3600.0
_COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Controls of terminals, and those that turn the direction of text around."""


class _Weight(click.FloatRange):
    """A number that is one: NaN lies in no range and beyond none, and becomes null in JSON, which means the default."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail("not a finite number", param, ctx)
        return number


WEIGHT = _Weight(0)


def results() -> Console:
    """Return where a command prints what it was asked for, in the width of the terminal if there is one."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def settings_of(context: click.Context) -> Settings:
    """Return the process's settings, with the data directory that the command line names.

    Raises:
        Misconfigured: The environment is not usable.
    """
    settings = Settings.from_process()
    data_dir: Path | None = context.find_root().params.get("data_dir")
    return dataclasses.replace(settings, data_dir=data_dir) if data_dir else settings


@contextmanager
def reporting_errors() -> Generator[None]:
    """End the process with one clear line and status 1 where a verb fails."""
    try:
        yield
    except (BulkheadError, OSError, UnicodeEncodeError, BaseExceptionGroup) as exc:
        error = InvalidInput("an argument holds what is no UTF-8 text") if _unwritable(exc) else first_of_ours(exc)
        if error is None:
            raise
        # not wrapped: a line is searched for and copied more often than it is read in a narrow window
        ERRORS.print(f"[bold red]{error.code}[/]: {escape(error.message)}", soft_wrap=True)
        sys.exit(1)


def _unwritable(exc: BaseException) -> bool:
    """Tell whether all that failed is a text with bytes of the command line that are not UTF-8."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_unwritable(child) for child in exc.exceptions)
    return isinstance(exc, UnicodeEncodeError)


@asynccontextmanager
async def interruptible() -> AsyncGenerator[None]:
    """Cancel the block on Ctrl-C, let it clean up, and abort; the second Ctrl-C does not wait.

    asyncio's own answer to Ctrl-C cancels once, and what happens to finish in that moment swallows it.

    Raises:
        click.Abort: There was a Ctrl-C.
    """
    interrupted = anyio.Event()

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                ERRORS.print("cleaning up; once more to stop at once")
                interrupted.set()
                tasks.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield
        tasks.cancel_scope.cancel()
    if interrupted.is_set():
        raise click.Abort


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--json` to a reading command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead of text.")(command)


def as_json(value: object) -> str:
    """Return `value` as JSON; ids and times become text."""
    return json.dumps(value, default=str, ensure_ascii=False)


def print_json(value: object) -> None:
    """Print `value` as one line of JSON."""
    click.echo(as_json(value))


def printable(text: object) -> str:
    """Return text of documents, models or agents so that a terminal shows it and obeys nothing in it."""
    return _COMMANDING.sub("\ufffd", str(text))


def options_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return a workflow's options given as NAME=VALUE: what JSON says, or the words themselves where it is none.

    Raises:
        click.UsageError: One is not of that form.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not name or not sign:
            raise click.UsageError(f"--option takes NAME=VALUE, not {pair!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a verb acts for."""

    tenant: str | None
    user: str | None
    groups: tuple[str, ...]

    def arguments(self) -> str:
        """Return the options that name the same caller again, with a space before each."""
        named = [("--tenant", self.tenant), ("--user", self.user), *(("--as-group", group) for group in self.groups)]
        return "".join(f" {option} {shlex.quote(value)}" for option, value in named if value is not None)


def caller_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--tenant`, `--user` and `--as-group` to a verb that talks to our own servers: a `Caller` named `caller`."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        named = {name: kwargs.pop(name) for name in ("tenant", "user", "groups")}
        try:
            return command(*args, caller=Caller(**named), **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]  # click passes them by name
        except (Unavailable, BaseExceptionGroup) as exc:
            error = first_of_ours(exc)
            if not isinstance(error, Unavailable):
                raise
            hint = "`bulkhead up` starts everything, `bulkhead doctor` says what is missing"
            raise Unavailable(f"{error.message}; {hint}") from exc

    wrapped = click.option(
        "--as-group", "groups", multiple=True, help="A group that the user belongs to; may be repeated."
    )(wrapped)
    wrapped = click.option("--user", default=None, help="Whom to act for. Default: your login name.")(wrapped)
    return click.option("--tenant", default=None, help="Tenant name or id; not needed where BULKHEAD_TOKEN is set.")(
        wrapped
    )


def caller_token(settings: Settings, caller: Caller, *, audience: Audience, scopes: frozenset[Scope]) -> str:
    """Return BULKHEAD_TOKEN, or mint a token with the keys of this installation. Blocks: call before any event loop.

    Raises:
        Misconfigured: Neither a token nor a tenant was given, or there is no signing key here.
        NotFound: There is no such tenant.
    """
    if settings.token is not None:
        return settings.token
    if caller.tenant is None:
        raise Misconfigured("name a tenant with --tenant, or set BULKHEAD_TOKEN")
    with installation(settings) as ready:
        found = anyio.run(_find_tenant, ready, caller.tenant)
        return token_issuer(ready).issue(
            tenant_id=found,
            subject=caller.user or login_name(),
            audience=audience,
            scopes=scopes,
            groups=caller.groups,
            lifetime_s=CLI_TOKEN_LIFETIME_S,
        )


def login_name() -> str:
    """Return whom to act for where nobody was named.

    Raises:
        Misconfigured: This process's user has no name, as in a container that runs as somebody's number.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError) as exc:
        raise Misconfigured("name a user with --user: yours has no login name here") from exc


@asynccontextmanager
async def operator(settings: Settings) -> AsyncGenerator[Operator]:
    """Open the maintenance login's verbs.

    Raises:
        Misconfigured: BULKHEAD_MAINTENANCE_DATABASE_URL is not set.
        Unavailable: The database is not reachable.
    """
    if settings.maintenance_database_url is None:
        raise Misconfigured("this needs BULKHEAD_MAINTENANCE_DATABASE_URL")
    async with open_database(
        settings.maintenance_database_url, sealer=None, pool_size=1, application="bulkhead-cli"
    ) as database:
        yield Operator(database=database)


async def _find_tenant(settings: Settings, reference: str) -> Any:
    async with operator(settings) as verbs:
        try:
            return (await verbs.find_tenant(reference)).tenant_id
        except NotFound as exc:
            raise NotFound(f"{exc.message}; make it with: bulkhead tenant create {reference}") from exc

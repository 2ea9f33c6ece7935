"""`bulkhead ingest`: files, folders and globs into a tenant's collection, through the MCP server as any client would.

Below: `rag.corpus.parse` reads files on this side, `rag.clients.mcp` puts them. Running it again changes nothing: a
document's source is its path below the folder that was named, and the server knows its content.
"""

from __future__ import annotations

import dataclasses
import glob
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import click
from anyio.streams.memory import MemoryObjectReceiveStream
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rag.cli.common import ERRORS, Caller, caller_options, caller_token, json_option, print_json, settings_of
from rag.clients.mcp import McpClient, mcp_client
from rag.corpus.parse import EXTENSIONS, ParsedDocument, Refusal, parse_many, read_file
from rag.errors import Conflict, DocumentRefused, InvalidInput, RateLimited, Unavailable
from rag.identity.scopes import Audience, Scope
from rag.settings import Settings

__all__ = ["FoundFile", "Note", "Report", "find_files", "ingest", "run_ingest"]

CONCURRENCY = 4
"""Documents under way at a time: enough to keep the server busy, few enough to leave it to others."""
ATTEMPTS = 5
"""Of one document, when the server is busy or limits the rate."""
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file to take in; `source` is its stable name, the path below the folder that was named."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that the owner of a document that was taken in may want to look at."""

    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done, by document."""

    created: int
    updated: int
    unchanged: int
    refused: tuple[Refusal, ...]
    notes: tuple[Note, ...]
    corpus_version: int | None
    """Which a search waits for that is to find all of it (`--min-version`); None: nothing was put."""
    interrupted: bool
    """Stopped by Ctrl-C before everything was done; what was begun has been finished."""


class _Tally:
    """What the workers share: who may read what they put, and the counts."""

    def __init__(self, refused: Iterable[Refusal], stopping: anyio.Event, readers: Sequence[str] | None) -> None:
        self.readers = None if readers is None else list(readers)
        self.outcomes: Counter[str] = Counter()
        self.version: int | None = None
        self.refused = list(refused)
        self.notes: list[Note] = []
        self.stopping = stopping

    def report(self) -> Report:
        return Report(
            created=self.outcomes["created"],
            updated=self.outcomes["updated"],
            unchanged=self.outcomes["unchanged"],
            refused=tuple(sorted(self.refused, key=lambda refusal: refusal.source)),
            notes=tuple(sorted(self.notes, key=lambda note: note.source)),
            corpus_version=self.version,
            interrupted=self.stopping.is_set(),
        )


def find_files(paths: Sequence[str | Path]) -> tuple[list[FoundFile], list[Refusal]]:
    """Return the files that `paths` (files, folders, globs) name, and what of `paths` names none.

    Of folders, only files of known types are taken, and hidden ones are not. Two files of one source are refused: the
    second would replace the first.
    """
    found: dict[str, FoundFile] = {}
    refused: list[Refusal] = []
    for path in paths:
        files = list(_expand(str(path)))
        if not files:
            refused.append(Refusal(source=str(path), reason="there is no such file, or no file of a known type in it"))
        for file in files:
            if not _is_text(file.source):
                refused.append(Refusal(source=ascii(file.source), reason="its name is not UTF-8; rename it"))
                continue
            known = found.setdefault(file.source, file)
            if known.path.resolve() != file.path.resolve():
                reason = f"{known.path} has the same name below its folder; ingest their common folder instead"
                refused.append(Refusal(source=str(file.path), reason=reason))
    return list(found.values()), refused


async def run_ingest(
    paths: Sequence[str | Path],
    client: McpClient,
    *,
    readers: Sequence[str] | None = None,
    progress: bool = False,
    stop: anyio.Event | None = None,
) -> Report:
    """Put every document of `paths`, four at a time; those that cannot be taken in are in the report, with the reason.

    `readers` are the groups that may read them; none: everyone; None: whoever may read them now. `progress` shows a bar
    on standard error. Once `stop` is set, what is under way is finished and no more is begun.

    Raises:
        Unauthenticated, Forbidden: The token does not allow it.
        Unavailable: The server went away; running again continues.
    """
    files, refused = await anyio.to_thread.run_sync(find_files, paths)
    tally = _Tally(refused, stop or anyio.Event(), readers)
    send, receive = anyio.create_memory_object_stream[FoundFile](len(files))
    for file in files:
        send.send_nowait(file)
    send.close()
    with _bar(len(files), shown=progress) as bar, receive:
        async with anyio.create_task_group() as workers:
            for _ in range(CONCURRENCY):
                workers.start_soon(_work, receive.clone(), client, tally, bar)
    return tally.report()


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--group",
    "readers",
    multiple=True,
    help="Who may read the documents: members of this group, which you must be too (--as-group); may be repeated. "
    "Default: whoever may read a document now; everyone in the tenant, if it is new.",
)
@click.option("--everyone", is_flag=True, help="Everyone in the tenant may read the documents, whoever might before.")
@caller_options
@json_option
@click.pass_context
def ingest(
    context: click.Context,
    paths: tuple[str, ...],
    readers: tuple[str, ...],
    everyone: bool,
    caller: Caller,
    as_json: bool,
) -> None:
    """Take files, folders and globs into a tenant's collection.

    Markdown, text, HTML, PDF, DOCX and JSON lines are read. What cannot be taken in is listed with the reason and the
    rest goes on; the exit status is 1 then. Running it again changes nothing.
    """
    if everyone and readers:
        raise InvalidInput("--group and --everyone contradict each other")
    settings = settings_of(context)
    scopes = frozenset({Scope.CORPUS_READ, Scope.CORPUS_WRITE})
    token = caller_token(settings, caller, audience=Audience.MCP, scopes=scopes)
    shown = not as_json and sys.stderr.isatty()
    report = anyio.run(
        partial(_ingest, settings, token, paths, readers=readers if readers or everyone else None, progress=shown)
    )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print(report)
    if report.interrupted:
        sys.exit(130)
    if report.refused:
        sys.exit(1)


async def _ingest(
    settings: Settings, token: str, paths: Sequence[str], *, readers: Sequence[str] | None, progress: bool
) -> Report:
    stop = anyio.Event()
    report: Report | None = None
    async with (
        mcp_client(settings.mcp_url, token, ca=settings.ca_certificate) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_set_on_interrupt, stop)
        report = await run_ingest(paths, client, readers=readers, progress=progress, stop=stop)
        tasks.cancel_scope.cancel()
    assert report is not None  # the task group ends by our own cancel only
    return report


def _print(report: Report) -> None:
    for refusal in report.refused:
        ERRORS.print(f"[red]refused[/] {escape(refusal.source)}: {escape(refusal.reason)}")
    for note in report.notes:
        ERRORS.print(f"[yellow]note[/] {escape(note.source)}: {escape(note.text)}")
    total = report.created + report.updated + report.unchanged
    if total and total == report.unchanged and not report.refused:
        click.echo(f"{total} documents, all unchanged")
    else:
        click.echo(
            f"{report.created} created, {report.updated} updated, {report.unchanged} unchanged, "
            f"{len(report.refused)} refused"
        )
    if report.interrupted:
        click.echo("interrupted: the rest was not begun; run the same command again to go on")


def _expand(path: str) -> Generator[FoundFile]:
    named = Path(path)
    if named.is_dir():
        yield from _below(named, named.rglob("*"))
    elif named.exists():
        yield FoundFile(path=named, source=named.name)
    elif glob.has_magic(path):
        # the folder before the first wildcard
        root = Path(*_until_magic(named.parts))
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207  # Path.glob takes no absolute pattern
            if Path(match).is_file():
                yield FoundFile(path=Path(match), source=Path(match).relative_to(root).as_posix())


def _below(folder: Path, paths: Iterable[Path]) -> Generator[FoundFile]:
    for path in sorted(paths):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and path.suffix.lower() in EXTENSIONS and path.is_file():
            yield FoundFile(path=path, source=relative.as_posix())


def _is_text(name: str) -> bool:
    """Tell whether a file's name can be sent: bytes of it that are not UTF-8 stand in it as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _until_magic(parts: Sequence[str]) -> Generator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


async def _set_on_interrupt(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()
            ERRORS.print("stopping after the documents under way; once more to stop at once")
            return


async def _work(files: MemoryObjectReceiveStream[FoundFile], client: McpClient, tally: _Tally, bar: _Bar) -> None:
    with files:
        async for file in files:
            bar.begin(file.source)
            for document in await anyio.to_thread.run_sync(_parsed, file):
                if tally.stopping.is_set():
                    return
                await _put(document, file, client, tally)
            bar.end()


def _parsed(file: FoundFile) -> list[ParsedDocument | Refusal]:
    try:
        return list(parse_many(read_file(file.path), name=file.source))
    except DocumentRefused as exc:
        return [Refusal(source=file.source, reason=exc.message)]


async def _put(document: ParsedDocument | Refusal, file: FoundFile, client: McpClient, tally: _Tally) -> None:
    if isinstance(document, Refusal):
        tally.refused.append(document)
        return
    source = f"{file.source}#{document.external_id}" if document.external_id else document.source
    arguments = {
        "source": source,
        "title": document.title,
        "text": document.text,
        "media_type": "text/markdown" if document.markdown else "text/plain",
        "metadata": dict(document.metadata),
        **({} if tally.readers is None else {"groups": tally.readers}),
    }
    try:
        result = await _patiently(client, arguments)
    except (InvalidInput, Conflict) as exc:
        tally.refused.append(Refusal(source=source, reason=exc.message))
    else:
        tally.outcomes[result["outcome"]] += 1
        tally.version = max(tally.version or 0, result["corpus_version"])
        if document.encoding not in {None, "utf-8"}:
            tally.notes.append(Note(source=source, text=f"is not UTF-8; it was read as {document.encoding}"))


async def _patiently(client: McpClient, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Put one document, waiting as long as the server asks when it limits the rate or is briefly away."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await client.call("put_document", arguments)
        except RateLimited as exc:
            await anyio.sleep(min(exc.retry_after_s, LONGEST_WAIT_S))
        except Unavailable:
            await anyio.sleep(0.2 * 2**attempt)
    return await client.call("put_document", arguments)


class _Bar:
    """The progress bar, or nothing."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total) if progress else None

    def begin(self, source: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=escape(source[-40:]))

    def end(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)


@contextmanager
def _bar(total: int, *, shown: bool) -> Generator[_Bar]:
    if not shown:
        yield _Bar(None, total)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=ERRORS, transient=True) as progress:
        yield _Bar(progress, total)

"""A collection goes into a tenant and comes out again, by the same put, embedding and delete that clients' work takes.

Above: the command line. Below: `rag.corpus`. Every wait is bounded; nothing here knows a terminal.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from rag.corpus.compaction import compact_due
from rag.corpus.embedding import embed_due
from rag.corpus.store import (
    MAX_PAGE,
    NewDocument,
    delete_document,
    document_id_of,
    list_documents,
    pending_embeddings,
    put_document,
)
from rag.db.pool import Database
from rag.errors import InvalidInput, NotFound, Unavailable
from rag.identity.principal import Principal
from rag.llm.embedders import Embedders

__all__ = ["Loaded", "Progress", "compact_all", "embed_all", "put_all", "remove_all", "remove_others", "sources_of"]

Progress = Callable[[str, int, int | None], None]
"""What is being done, how much of it is done, and of how much (None: not known)."""
CONCURRENCY = 4
"""Documents on their way into or out of the store at a time."""
EMBEDDERS = 2
"""One waits for the model while the other writes vectors."""
READ_AHEAD = 64
STALL_S = 180.0
"""Documents that another process has claimed are waited for this long; a failed claim comes back after 30 to 60 s."""
LOOK_S = 0.5
COMPACT_BOUND_S = 300.0


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What became of a collection's documents."""

    sources: set[str] = field(default_factory=set[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Id -> why the store did not take it."""
    chunks: int = 0


async def put_all(
    database: Database, principal: Principal, documents: Iterator[NewDocument], *, progress: Progress
) -> Loaded:
    """Put every document, four at a time; what the store refuses is told and the rest goes on.

    Raises:
        InvalidInput: The file of documents is malformed.
        SealRefused, Revoked, Unavailable: The database does not take them.
    """
    loaded = Loaded()
    send, receive = anyio.create_memory_object_stream[NewDocument](READ_AHEAD)
    async with anyio.create_task_group() as tasks, receive:
        for _ in range(CONCURRENCY):
            tasks.start_soon(_put, receive.clone(), database, principal, loaded, progress)
        async with send:
            begun: set[str] = set()
            while batch := await anyio.to_thread.run_sync(_next, documents):
                for document in batch:
                    # two on their way at a time would leave one or the other, by chance
                    if document.source in begun:
                        loaded.refused[document.source] = "its id occurs twice; the first document has it"
                    else:
                        begun.add(document.source)
                        await send.send(document)
    return loaded


async def embed_all(
    database: Database,
    worker: Database,
    embedders: Embedders,
    principal: Principal,
    *,
    progress: Progress,
) -> None:
    """Embed until no document of the tenant waits for vectors. `worker` is a pool of the login that may claim.

    What other tenants have in the queue is embedded on the way, and a worker that runs beside this helps.

    Raises:
        EmbedderUnavailable: The model failed.
        Unavailable: Nothing moved for STALL_S, or the database failed.
    """
    total = waiting = await pending_embeddings(database, principal)
    since = time.monotonic()
    while waiting:
        progress("embedding", total - waiting, total)
        embedded = await _embed_some(worker, embedders)
        left = await pending_embeddings(database, principal)
        if embedded or left < waiting:
            waiting, since = left, time.monotonic()
        elif time.monotonic() - since > STALL_S:
            raise Unavailable(f"{left} documents got no vectors for {STALL_S:.0f} s; is a worker with a fault running?")
        else:
            await anyio.sleep(LOOK_S)
    progress("embedding", total, total)


async def compact_all(worker: Database, *, progress: Progress) -> None:
    """Compact what was written, as the worker does some seconds later: it makes the vocabulary for misspelled words.

    Nothing that is found depends on it otherwise, so that it ends after COMPACT_BOUND_S without a complaint.

    Raises:
        Unavailable: The database failed.
    """
    progress("compacting", 0, None)
    with anyio.move_on_after(COMPACT_BOUND_S):
        while await compact_due(worker, settle_s=0.0, backlog=1):
            pass
    progress("compacting", 1, 1)


async def sources_of(database: Database, principal: Principal) -> AsyncGenerator[str]:
    """Yield the source of every document of the tenant that the caller may read, in order."""
    after: str | None = ""
    while after is not None:
        page = await list_documents(database, principal, after=after, limit=MAX_PAGE)
        for document in page.documents:
            yield document.source
        after = page.next_after


async def remove_others(database: Database, principal: Principal, keep: set[str], *, progress: Progress) -> None:
    """Delete every document of the tenant whose source is not in `keep`."""
    others = [source async for source in sources_of(database, principal) if source not in keep]
    send, receive = anyio.create_memory_object_stream[str](len(others))
    for source in others:
        send.send_nowait(source)
    send.close()
    done = 0

    async def remove(queue: MemoryObjectReceiveStream[str]) -> None:
        nonlocal done
        with queue:
            async for source in queue:
                with suppress(NotFound):
                    await delete_document(database, principal, document_id_of(principal.tenant_id, source))
                done += 1
                progress("removing documents", done, len(others))

    async with anyio.create_task_group() as tasks:
        with receive:
            for _ in range(CONCURRENCY):
                tasks.start_soon(remove, receive.clone())


async def remove_all(database: Database, principal: Principal, *, progress: Progress) -> None:
    """Delete every document of the tenant."""
    await remove_others(database, principal, set(), progress=progress)


async def _embed_some(worker: Database, embedders: Embedders) -> int:
    done = 0

    async def embed() -> None:
        nonlocal done
        done += await embed_due(worker, embedders)

    async with anyio.create_task_group() as tasks:
        for _ in range(EMBEDDERS):
            tasks.start_soon(embed)
    return done


async def _put(
    documents: MemoryObjectReceiveStream[NewDocument],
    database: Database,
    principal: Principal,
    loaded: Loaded,
    progress: Progress,
) -> None:
    with documents:
        async for document in documents:
            try:
                stored = await put_document(database, principal, document)
            except InvalidInput as exc:
                loaded.refused[document.source] = exc.message
            else:
                loaded.sources.add(document.source)
                loaded.chunks += stored.chunks
            progress("storing documents", len(loaded.sources) + len(loaded.refused), None)


def _next(documents: Iterator[NewDocument]) -> list[NewDocument]:
    """Return the next documents of the file; reading and unpacking block."""
    return list(islice(documents, READ_AHEAD))

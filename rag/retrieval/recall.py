"""Whether the graphs still find what is nearest: now and then a live search is repeated against every vector.

Above: the processes that search. Below: `rag.db` and the SQL function `rag.recall_at_10_v1`. Stored chunks would make
poor questions (each is its own nearest neighbour, by far), so the questions are real ones. What a caller asked stays
where it is: the query's vector waits in a small queue of this process, is looked at once, under the caller's own seal
and over what that caller may read, and dropped. It is written nowhere; what is counted carries the tenant's size alone.

    async with recall_sampler(database) as sampler:
        ...
        sampler.offer(principal, vector, model_id)      # after a search that went through a graph
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from numpy.typing import NDArray
from opentelemetry import metrics

from rag.db.pool import Database
from rag.db.vectors import halfvec
from rag.errors import BulkheadError
from rag.identity.principal import Principal
from sql import load_queries

__all__ = ["RecallSampler", "recall_sampler", "size_bucket"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("recall")
EVERY = 100
"""Searches through a graph, of which one is checked."""
PAUSE_S = 5.0
"""Between two checks at least: one over a million chunks takes as long as a thousand searches."""
WAITING = 4
WINDOW = 50
FEWEST = 20
"""Checks of one size before anything is said about it: a single miss is 0.9."""
FLOOR = 0.99


def size_bucket(chunks: int) -> str:
    """Return the power of ten that a tenant of so many chunks has reached: 100, 1k, 10k, 100k or 1M."""
    return ("100", "1k", "10k", "100k", "1M")[min(max(int(math.log10(max(chunks, 1))) - 2, 0), 4)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    principal: Principal
    vector: NDArray[np.float32]
    model_id: int


@dataclass(slots=True, kw_only=True)
class RecallSampler:
    """Takes offers without ever waiting, and drops those that come too often. Made by `recall_sampler`."""

    database: Database
    histogram: metrics.Histogram
    every: int
    pause_s: float
    sending: MemoryObjectSendStream[_Sample]
    receiving: MemoryObjectReceiveStream[_Sample]
    _seen: int = 0
    _recent: dict[str, deque[float]] = field(default_factory=dict[str, "deque[float]"])

    def offer(self, principal: Principal, vector: NDArray[np.float32], model_id: int) -> None:
        """Count one search that went through a graph; every so many-th is kept for a check."""
        self._seen += 1
        if self._seen % self.every == 0:
            try:
                self.sending.send_nowait(_Sample(principal=principal, vector=vector, model_id=model_id))
            except anyio.WouldBlock:
                return

    async def check_forever(self) -> None:
        """Check what is kept, one at a time, until cancelled."""
        async for sample in self.receiving:
            try:
                await self._check(sample)
            except BulkheadError as exc:  # expired or revoked meanwhile, or the database is busy: there will be others
                _log.debug("a recall sample was not checked: %s", exc.code)
            await anyio.sleep(self.pause_s)

    async def _check(self, sample: _Sample) -> None:
        found = await self.database.fetch_sealed(
            _QUERIES["recall_at_10"], sample.principal, vector=halfvec(sample.vector), model_id=sample.model_id
        )
        for row in found:  # none where the graph has gone since
            self._note(size_bucket(int(row["chunks"])), float(row["recall"]))

    def _note(self, bucket: str, recall: float) -> None:
        self.histogram.record(recall, {"tenant_size": bucket})
        recent = self._recent.setdefault(bucket, deque(maxlen=WINDOW))
        recent.append(recall)
        mean = sum(recent) / len(recent)
        if len(recent) >= FEWEST and mean < FLOOR:
            _log.warning("recall at 10 is %.3f over %d searches of tenants of size %s", mean, len(recent), bucket)
            recent.clear()


@asynccontextmanager
async def recall_sampler(
    database: Database, *, meter: metrics.Meter | None = None, every: int = EVERY, pause_s: float = PAUSE_S
) -> AsyncGenerator[RecallSampler]:
    """Yield a sampler whose checks run in the background of the block. `meter` defaults to the process's own."""
    histogram = (meter or metrics.get_meter("bulkhead")).create_histogram(
        "recall_at_10",
        unit="1",
        description="Share of the ten nearest chunks that a search through a graph found, by size of the tenant.",
        explicit_bucket_boundaries_advisory=[tenth / 10 for tenth in range(10)] + [0.99],
    )
    sending, receiving = anyio.create_memory_object_stream[_Sample](WAITING)
    async with sending, receiving, anyio.create_task_group() as tasks:
        sampler = RecallSampler(
            database=database,
            histogram=histogram,
            every=every,
            pause_s=pause_s,
            sending=sending,
            receiving=receiving,
        )
        tasks.start_soon(sampler.check_forever)
        try:
            yield sampler
        finally:
            tasks.cancel_scope.cancel()

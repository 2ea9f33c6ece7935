"""Chunks become vectors: one inference, and one transaction that stores what it made for the models that still count.

Above: `embedding` and `switching`, the two loops of the worker. Below: `rag.db`, an `Embedder`. No transaction is open
during inference, so a tenant's models may have changed since; whoever stores holds them and looks again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from rag.db.pool import Row, Session
from rag.db.vectors import halfvec
from rag.errors import EmbedderUnavailable
from rag.llm.embedders import Embedders
from rag.llm.ports import Embedder, Vectors
from sql import load_queries

__all__ = ["BATCH_CHUNKS", "Outages", "TenantModels", "embed_chunks", "embedding_input", "hold_models", "store_vectors"]

_CORPUS = load_queries("corpus")
_MODELS = load_queries("models")
BATCH_CHUNKS = 32
"""Chunks per inference: some tenths of a second on one core, after which a waiting query has its turn."""
EMBED_TIMEOUT_S = 60.0
FIRST_REST_S = 1.0
LONGEST_REST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantModels:
    """Ids of the model that a tenant's searches use, and of the one that is filled beside it."""

    active: int
    next: int | None


@dataclass(frozen=True, slots=True)
class Outages:
    """Which models failed lately, and when each is asked again. One that hangs must not hold up tenants of others."""

    _resting: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])

    def rest_s(self, model_id: int) -> float:
        """Return the seconds until the model may be asked; 0: now."""
        until, _ = self._resting.get(model_id, (0.0, 0.0))
        return max(0.0, until - time.monotonic())

    def failed(self, model_id: int) -> None:
        """Let the model rest, twice as long after each failure in a row."""
        _, pause_s = self._resting.get(model_id, (0.0, FIRST_REST_S / 2))
        pause_s = min(2 * pause_s, LONGEST_REST_S)
        self._resting[model_id] = (time.monotonic() + pause_s, pause_s)

    def answered(self, model_id: int) -> None:
        """Forget that the model ever failed."""
        self._resting.pop(model_id, None)


async def hold_models(session: Session, embedders: Embedders) -> TenantModels:
    """Return the sealed tenant's models, which do not change before the session's transaction ends.

    A tenant without a model of its own is settled on the installation's default: its vectors stay of one model whatever
    the default is later.
    """
    row = await session.fetch_one(_MODELS["hold_models"], default_model=embedders.default_id)
    assert row is not None
    return TenantModels(active=row["model_id"], next=row["next_model_id"])


def embedding_input(title: str, text: str) -> str:
    """Return what stands for a chunk before the model: its document's title and its text, as collections like BEIR do.

    A chunk from the middle of a section often does not name what it is about; its title does.
    """
    first_line = text.lstrip("# ").split("\n", 1)[0].rstrip()
    return text if first_line == title else f"{title}\n{text}"


async def embed_chunks(embedder: Embedder, chunks: Sequence[Row]) -> Vectors:
    """Return one vector for each chunk (rows with `title` and `text`).

    Raises:
        EmbedderUnavailable: The model failed or took too long.
    """
    try:
        with anyio.fail_after(EMBED_TIMEOUT_S):
            return await embedder.embed([embedding_input(row["title"], row["text"]) for row in chunks])
    except TimeoutError as exc:
        raise EmbedderUnavailable("the embedding model took too long") from exc


async def store_vectors(
    session: Session, embedders: Embedders, chunks: Sequence[Row], vectors: Mapping[int, Vectors]
) -> None:
    """Store what was made of `chunks`, by model id, for those models that the sealed tenant still uses or fills.

    The caller has taken hold of the chunks' documents. Chunks that are gone are passed over.
    """
    models = await hold_models(session, embedders)
    for model_id in (models.active, models.next):
        if model_id is None or model_id not in vectors:
            continue
        await session.fetch(
            _CORPUS["store_vectors"],
            model_id=model_id,
            chunk_ids=[row["chunk_id"] for row in chunks],
            vectors=[halfvec(vector) for vector in vectors[model_id]],
        )

"""Which embedding model each tenant's vectors are made with, and how an operator changes it.

Below: `rag.db`. Above: the CLI. Runs as the maintenance login, which names the next model and counts; the worker makes
the vectors and switches (`rag.corpus.switching`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from rag.db.pool import Database, Row, Session
from rag.errors import Conflict, InvalidInput, NotFound
from sql import load_queries

__all__ = ["GRAPH_CHUNKS", "Fill", "KnownModel", "ModelStatus", "State", "cancel", "migrate", "models", "statuses"]

_QUERIES = load_queries("models")
_REASON = "the maintenance login names the models of all tenants and counts their vectors"
GRAPH_CHUNKS = 5000
"""Above it a search uses a graph, and a switch waits for the new model's (sql/migrations/0012_embedding_models.sql)."""


class State(StrEnum):
    """Where a tenant's change of models stands."""

    SETTLED = "settled"
    FILLING = "filling"
    """Vectors of the next model are being made; searches use the old ones."""
    INDEXING = "indexing"
    """All vectors are there; the tenant is so large that the switch waits for upkeep to build a graph over them."""
    CLEANING = "cleaning"
    """Searches use the new model; vectors of another one are still to be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One model's vectors of one tenant."""

    model: str
    dimension: int
    filled: int
    """Chunks that have a vector."""
    graph: bool
    """An index of the tenant's own over them is ready; small tenants need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One tenant's models."""

    tenant_id: UUID
    tenant: str
    state: State
    chunks: int
    active: Fill | None
    """None: the tenant has no vectors yet; the first to be made settle it on the installation's default."""
    next: Fill | None
    unused: int
    """Vectors of other models, to be deleted."""
    failures: int
    """Attempts in a row that made no vectors of the next model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that the database has a row for."""

    name: str
    dimension: int
    tenants: int
    changing: int
    """Tenants that are changing to it."""


async def models(database: Database) -> list[KnownModel]:
    """Return every model that `bulkhead migrate` was told of, by name."""
    async with database.unsafe_unscoped(reason=_REASON) as session:
        rows = await session.fetch(_QUERIES["models_in_use"])
    return [
        KnownModel(name=row["name"], dimension=row["dimension"], tenants=row["tenants"], changing=row["changing"])
        for row in rows
    ]


async def statuses(database: Database, tenant_id: UUID | None = None) -> list[ModelStatus]:
    """Return how one tenant, or every one, stands, by name. Counts vectors: tenths of a second for a million."""
    async with database.unsafe_unscoped(reason=_REASON) as session:
        return [_status(row) for row in await session.fetch(_QUERIES["model_status"], tenant_id=tenant_id)]


async def migrate(database: Database, tenant_id: UUID, model: str, *, dimension: int | None = None) -> None:
    """Have the workers fill `model` for the tenant, and switch to it when every chunk has its vector.

    A change to a third model that is under way ends; its vectors are deleted.

    Args:
        database: Of the maintenance login.
        tenant_id: Whose.
        model: Its name in the catalogue.
        dimension: Needed only where the catalogue has the name with several.

    Raises:
        NotFound: There is no such model.
        InvalidInput: The name has several dimensions.
        Conflict: The tenant uses it already.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        model_id = await _find(session, model, dimension)
        # in this order: the workers take the two rows' locks so
        await session.fetch(_QUERIES["enqueue_switch"], tenant_id=tenant_id)
        if not await session.fetch(_QUERIES["set_next_model"], tenant_id=tenant_id, model_id=model_id):
            raise Conflict(f"the tenant uses {model} already; --cancel ends a change to another model")


async def cancel(database: Database, tenant_id: UUID) -> None:
    """End a change that is under way: the tenant keeps its model, and what was made of the next one is deleted.

    Raises:
        Conflict: None is under way.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        await session.fetch(_QUERIES["enqueue_switch"], tenant_id=tenant_id)
        if not await session.fetch(_QUERIES["clear_next_model"], tenant_id=tenant_id):
            raise Conflict("the tenant is not changing its embedding model")


async def _find(session: Session, model: str, dimension: int | None) -> int:
    rows = await session.fetch(_QUERIES["find_model"], name=model, dimension=dimension)
    if not rows:
        raise NotFound(
            f"there is no embedding model {model!r} here: add it to BULKHEAD_EMBEDDINGS_FILE and run "
            "`bulkhead migrate`; `bulkhead embeddings models` shows all"
        )
    if len(rows) > 1:
        raise InvalidInput(
            f"{model} is known with {', '.join(str(row['dimension']) for row in rows)} dimensions; say which"
        )
    return int(rows[0]["model_id"])


def _status(row: Row) -> ModelStatus:
    return ModelStatus(
        tenant_id=row["tenant_id"],
        tenant=row["name"],
        state=_state(row),
        chunks=row["chunks"],
        active=_fill(row["model"], row["dimension"], row["filled"], graph=row["graph"]),
        next=_fill(row["next_model"], row["next_dimension"], row["next_filled"], graph=row["next_graph"]),
        unused=row["unused"],
        failures=row["attempts"] or 0,
    )


def _state(row: Row) -> State:
    if row["next_model"] is None:
        return State.CLEANING if row["unused"] else State.SETTLED
    waits = row["chunks"] > GRAPH_CHUNKS and not row["next_graph"]
    return State.INDEXING if waits and row["next_filled"] >= row["filled"] else State.FILLING


def _fill(model: str | None, dimension: int | None, filled: int, *, graph: bool) -> Fill | None:
    if model is None or dimension is None:
        return None
    return Fill(model=model, dimension=dimension, filled=filled, graph=graph)

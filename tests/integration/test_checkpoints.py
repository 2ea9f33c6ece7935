"""LangGraph's saver inside the walls: same tables as the library's, one tenant, one owner of the run."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, TypedDict
from uuid import UUID

import anyio
import asyncpg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.base import MIGRATIONS
from langgraph.graph import END, START, StateGraph

from rag.db.pool import Database
from rag.errors import BulkheadError, FenceLost, Revoked, Unavailable
from rag.identity.principal import Principal
from tests.support import tasks
from tests.support.world import World
from workflows.checkpoints import CheckpointPool, RunContext, TenantPostgresSaver, open_checkpoints

pytestmark = pytest.mark.anyio


class Steps(TypedDict, total=False):
    """State of the little graph."""

    seen: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A claimed run of Ada's, and Eve of another tenant."""

    world: World
    database: Database
    pool: CheckpointPool
    ada: Principal
    eve: Principal
    task_id: UUID
    fence: int

    def saver(self, principal: Principal, *, fence: int | None = None) -> TenantPostgresSaver:
        """Return the saver that a run of `principal` would use."""
        context = RunContext(
            seal=lambda: self.database.seal(principal), task_id=self.task_id, fence=fence or self.fence
        )
        return TenantPostgresSaver(self.pool, context)

    @property
    def config(self) -> RunnableConfig:
        """Return the thread of the task."""
        return {"configurable": {"thread_id": str(self.task_id)}}


@pytest.fixture(name="setting")
async def setting_fixture(world: World) -> AsyncGenerator[Setting]:
    """One task of acme's, leased."""
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    assert world.settings.worker_database_url
    async with (
        world.database(claims=True) as database,
        open_checkpoints(world.settings.worker_database_url, pool_size=4, application="test-checkpoints") as pool,
    ):
        ada = world.principal(acme)
        task_id = await tasks.accept(database, ada)
        claim = await tasks.claim(database, lease_s=0.0)
        yield Setting(
            world=world,
            database=database,
            pool=pool,
            ada=ada,
            eve=world.principal(globex, user="eve"),
            task_id=task_id,
            fence=claim.fence,
        )


def _graph(saver: TenantPostgresSaver, *, broken: bool = False) -> Any:
    async def first(state: Steps) -> Steps:
        return {"seen": [*state.get("seen", []), "first"]}

    async def second(state: Steps) -> Steps:
        if broken:
            raise Unavailable
        return {"seen": [*state.get("seen", []), "second"]}

    graph = StateGraph(Steps)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    return graph.compile(checkpointer=saver)


async def test_a_graph_that_broke_goes_on_where_it_broke(setting: Setting) -> None:
    with pytest.raises(Unavailable):
        await _graph(setting.saver(setting.ada), broken=True).ainvoke({"seen": []}, setting.config, durability="sync")
    graph = _graph(setting.saver(setting.ada))
    assert (await graph.aget_state(setting.config)).next == ("second",)
    assert await graph.ainvoke(None, setting.config, durability="sync") == {"seen": ["first", "second"]}


async def test_another_tenant_reads_nothing_of_a_thread_even_with_its_own_run_of_that_name(setting: Setting) -> None:
    await _graph(setting.saver(setting.ada)).ainvoke({"seen": []}, setting.config, durability="sync")
    with pytest.raises(FenceLost):  # the fence is per tenant too: Eve holds no run of that id
        await setting.saver(setting.eve).aget_tuple(setting.config)
    connection = await asyncpg.connect(setting.world.settings.database_url)
    try:
        async with connection.transaction():
            await connection.execute("select rag.open_context_v1($1)", setting.database.seal(setting.eve))
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                assert await connection.fetchval(f"select count(*) from checkpoint.{table}") == 0
                assert await connection.execute(f"delete from checkpoint.{table}") == "DELETE 0"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(
                    "insert into checkpoint.checkpoints (tenant_id, thread_id, checkpoint_id, checkpoint)"
                    " values ($1, 'x', 'y', '{}')",
                    setting.ada.tenant_id,
                )
    finally:
        await connection.close()


async def test_an_outdated_worker_saves_nothing(setting: Setting) -> None:
    former = _graph(setting.saver(setting.ada))
    owner = await tasks.claim(setting.database, worker="worker-b")
    with pytest.raises(FenceLost):
        await former.ainvoke({"seen": []}, setting.config, durability="sync")
    graph = _graph(setting.saver(setting.ada, fence=owner.fence))
    assert (await graph.aget_state(setting.config)).values == {}


async def test_a_run_whose_token_was_revoked_saves_nothing(setting: Setting) -> None:
    async with setting.world.operator() as operator:
        await operator.revoke_token(setting.ada.tenant_id, setting.ada.token_ids[0])
    with pytest.raises(Revoked):
        await setting.saver(setting.ada).aget_tuple(setting.config)


async def test_no_connection_keeps_a_tenant_after_use(setting: Setting) -> None:
    await setting.saver(setting.ada).aget_tuple(setting.config)
    async with setting.pool.connection() as connection:
        cursor = await connection.execute("select coalesce(current_setting('app.context', true), '') as context")
        assert await cursor.fetchone() == {"context": ""}


async def test_connections_that_a_restarted_server_has_cut_are_not_given_to_a_run(setting: Setting) -> None:
    async with anyio.create_task_group() as group, setting.pool.connection(), setting.pool.connection():
        group.start_soon(setting.saver(setting.ada).aget_tuple, setting.config)
    admin = await asyncpg.connect(setting.world.superuser_url)
    try:
        cut = await admin.fetch(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = 'test-checkpoints' and datname = current_database()"
        )
        assert len(cut) > 1
    finally:
        await admin.close()
    with anyio.fail_after(5):
        assert await setting.saver(setting.ada).aget_tuple(setting.config) is None


async def test_setup_is_never_the_librarys(setting: Setting) -> None:
    with pytest.raises(BulkheadError):
        await setting.saver(setting.ada).setup()


async def test_a_stored_object_of_an_unknown_class_does_not_come_to_life(setting: Setting) -> None:
    saver = setting.saver(setting.ada)
    kind, data = saver.serde.dumps_typed(replace(_Bait(), text="boo"))
    assert not isinstance(saver.serde.loads_typed((kind, data)), _Bait)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bait:
    text: str = ""


async def test_our_tables_have_the_librarys_columns_a_tenant_and_a_subject(setting: Setting) -> None:
    """A new version of the library that changes its tables must fail here first."""
    admin = await asyncpg.connect(setting.world.superuser_url)
    try:
        await admin.execute("create schema library; set search_path = library")
        for statement in MIGRATIONS:
            await admin.execute(statement)  # one by one: CREATE INDEX CONCURRENTLY runs in no transaction
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            theirs, ours = [await _columns(admin, schema, table) for schema in ("library", "checkpoint")]
            assert (ours.pop("tenant_id"), ours.pop("subject")) == (("uuid", True), ("text", True))
            assert ours == theirs
    finally:
        await admin.close()


async def _columns(connection: asyncpg.Connection, schema: str, table: str) -> dict[str, tuple[str, bool]]:
    rows = await connection.fetch(
        "select attname, format_type(atttypid, atttypmod) as type, attnotnull from pg_attribute"
        " where attrelid = format('%I.%I', $1::text, $2::text)::regclass and attnum > 0 and not attisdropped",
        schema,
        table,
    )
    return {row["attname"]: (row["type"], row["attnotnull"]) for row in rows}

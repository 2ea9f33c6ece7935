"""Webhooks and their outbox as injected SQL meets them: whose they are, what is closed, what is the worker's alone."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from rag.db.pool import Database
from rag.errors import BulkheadError, Conflict, Forbidden, NotFound
from rag.identity.principal import Principal
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.push import store
from rag.push.values import MAX_CONFIGS, PACE, PURPOSE, Credentials, NewWebhook, Webhook
from rag.tasks.store import append, status_payload
from rag.tasks.values import EventKind, TaskState
from sql import Query
from tests.support import tasks
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
NEW = NewWebhook(url="https://hook.example/", config_id="mine", credentials=Credentials(token="hush"))
INSERT = (
    "insert into rag.push_config (tenant_id, task_id, config_id, url, first_seq, subject, groups, token_ids, "
    "token_issued_at) values (rag.current_tenant(), $1, 'evil', 'https://evil.example/', 1, $2, $3, $4, $5)"
)
WORKERS_OWN = (
    "select * from queue.claim_pushes_v1(1, 1, 1)",
    "select queue.advance_push_v1('00000000-0000-4000-8000-000000000000', 1, 1, 1)",
    "select queue.rest_push_v1('00000000-0000-4000-8000-000000000000', 1, true)",
    "select queue.fail_push_v1('00000000-0000-4000-8000-000000000000', 1, 1, 'x')",
    "select queue.finish_push_v1('00000000-0000-4000-8000-000000000000', 1)",
    "select * from queue.dead_pushes_v1(null)",
    "select queue.redeliver_pushes_v1(rag.current_tenant(), null)",
    "select * from queue.push",
    "delete from queue.push",
    "select secrets from rag.push_config",
    "select p from rag.push_config p",
    "update rag.push_config set url = 'https://evil.example/'",
    "update rag.push_config set subject = 'eve'",
    "truncate rag.push_config",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Ada's webhook on Ada's task, which the whole tenant sees."""

    world: World
    database: Database
    box: SecretBox
    ada: Principal
    bob: Principal
    rival: Principal
    task: UUID
    hook: Webhook

    async def run(self, who: Principal, text: str, *arguments: object) -> list[object]:
        """Run a statement that somebody smuggled into a session of `who`."""
        names = tuple(f"p{number}" for number in range(len(arguments)))
        query = Query(name="injected", description="", text=text, parameters=names)
        async with self.database.tenant(who) as session:
            return list(await session.fetch(query, **dict(zip(names, arguments, strict=True))))


@pytest.fixture(scope="module", name="untouched")
async def untouched_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """One scene for all statements that are refused."""
    async with world(cluster) as own, _scene(own) as scene:
        yield scene


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """A scene of the test's own."""
    async with _scene(world) as scene:
        yield scene


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    """No server: the store, and the login of the servers."""
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    ada, bob = world.principal(acme), world.principal(acme, user="bob")
    assert world.settings.seal_keys_file is not None
    box = SecretBox.derive(load_seal_keys(world.settings.seal_keys_file), purpose=PURPOSE)
    async with world.database() as database:
        task = await tasks.accept(database, ada)
        async with database.tenant(ada) as session:
            hook = await store.create(session, ada, box, task, NEW)
        yield Scene(
            world=world,
            database=database,
            box=box,
            ada=ada,
            bob=bob,
            rival=world.principal(rival),
            task=task,
            hook=hook,
        )


@pytest.mark.parametrize("statement", WORKERS_OWN)
async def test_the_servers_login_may_do_nothing_of_the_couriers(untouched: Scene, statement: str) -> None:
    with pytest.raises(Forbidden):
        await untouched.run(untouched.ada, statement)


async def test_a_webhook_is_its_makers_alone(scene: Scene) -> None:
    everything = "select url from rag.push_config"
    assert len(await scene.run(scene.ada, everything)) == 1
    for other in (scene.bob, scene.rival):
        assert await scene.run(other, everything) == []
        await scene.run(other, "delete from rag.push_config")
    assert len(await scene.run(scene.ada, everything)) == 1


async def test_a_webhook_acts_for_nobody_else_and_with_no_more_than_its_makers_grant(scene: Scene) -> None:
    own = (scene.bob.subject, [], list(scene.bob.token_ids), scene.bob.issued_at)
    await scene.run(scene.bob, INSERT, scene.task, *own)
    for subject, groups, tokens, issued in (
        ("ada", *own[1:]),
        (own[0], ["board"], *own[2:]),
        (own[0], own[1], [], own[3]),
        (own[0], own[1], own[2], own[3] + 3600),
    ):
        with pytest.raises(Forbidden):
            await scene.run(scene.bob, INSERT.replace("evil'", "other'"), scene.task, subject, groups, tokens, issued)


async def test_nobody_has_a_webhook_on_a_task_that_it_does_not_see(scene: Scene) -> None:
    board = dataclasses.replace(scene.ada, groups=("board",))
    hidden = await tasks.accept(scene.database, board)
    own = (scene.bob.subject, [], list(scene.bob.token_ids), scene.bob.issued_at)
    for who, grant in (
        (scene.bob, own),
        (scene.rival, ("ada", [], list(scene.rival.token_ids), scene.rival.issued_at)),
    ):
        for task in (hidden, uuid4()):
            with pytest.raises(BulkheadError):
                await scene.run(who, INSERT, task, *grant)
            async with scene.database.tenant(who) as session:
                with pytest.raises(NotFound):
                    await store.create(session, who, scene.box, task, NEW)


async def test_a_claims_seal_opens_its_task_and_no_other(scene: Scene) -> None:
    other = await tasks.accept(scene.database, scene.ada)
    async with scene.database.tenant(scene.ada) as session:
        unclaimed = await store.create(session, scene.ada, scene.box, other, NEW)
    async with scene.world.database(claims=True) as worker:
        claims = await store.claim(worker, wanted=2, pace=PACE)
        claim = next(one for one in claims if one.push_id == scene.hook.push_id)
        async with worker.sealed(claim.seal) as session:
            found = await store.recipient(session, scene.box, claim.push_id, expires_at=0.0)
            assert found is not None
            assert (found.maker.subject, found.credentials.token) == ("ada", "hush")
            assert await store.recipient(session, scene.box, unclaimed.push_id, expires_at=0.0) is None
            assert not await store.rest(session, dataclasses.replace(claim, fence=claim.fence + 1))
            assert await store.rest(session, claim)
            assert not await store.rest(session, claim), "what was handed back is held no more"


async def test_credentials_open_in_their_own_place_alone(scene: Scene) -> None:
    bound = (str(scene.ada.tenant_id), str(scene.hook.push_id))
    closed = scene.box.seal("hush", bound_to=bound)
    assert scene.box.open(closed, bound_to=bound) == "hush"
    with pytest.raises(BulkheadError):
        scene.box.open(closed, bound_to=(str(scene.rival.tenant_id), str(scene.hook.push_id)))


async def test_credentials_do_not_follow_a_webhook_to_another_address(scene: Scene) -> None:
    """Whoever can write as the database does could not read them, and would have them sent."""
    admin = await asyncpg.connect(scene.world.superuser_url)
    try:
        await admin.execute("update rag.push_config set url = 'https://evil.example/'")
    finally:
        await admin.close()
    async with scene.world.database(claims=True) as worker:
        (claim,) = await store.claim(worker, wanted=1, pace=PACE)
        async with worker.sealed(claim.seal) as session:
            with pytest.raises(Conflict):
                await store.recipient(session, scene.box, claim.push_id, expires_at=0.0)


async def test_webhooks_that_are_set_at_once_are_one_of_a_name_and_no_more_than_there_may_be(scene: Scene) -> None:
    async def set_(name: str) -> None:
        async with scene.database.tenant(scene.ada) as session:
            new = dataclasses.replace(NEW, config_id=name)
            try:
                await store.create(session, scene.ada, scene.box, scene.task, new)
            except Conflict:
                refused.append(name)

    refused: list[str] = []
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as group:
            for name in ("mine", "mine", "mine", *(f"hook-{number}" for number in range(MAX_CONFIGS + 2))):
                group.start_soon(set_, name)
    rows = await scene.run(scene.ada, "select config_id from rag.push_config")
    assert len(rows) == MAX_CONFIGS
    assert len(refused) == 3


async def test_a_webhook_that_is_taken_away_while_a_message_sets_it_waits_and_never_locks_both(scene: Scene) -> None:
    waits = "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    admin = await asyncpg.connect(scene.world.superuser_url)

    async def take_away() -> None:
        async with scene.database.tenant(scene.ada) as session:
            await store.delete(session, scene.task, "mine")

    try:
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as group, scene.database.tenant(scene.ada) as session:
                # as a message to the task does: its event, and then the webhook that it brings along
                payload = status_payload(TaskState.WORKING, "more")
                await append(session, scene.task, EventKind.STATUS, payload, fence=None)
                group.start_soon(take_away)
                while not await admin.fetchval(waits):  # noqa: ASYNC110  # the database tells nobody
                    await anyio.sleep(0.01)
                await store.create(session, scene.ada, scene.box, scene.task, NEW)
    finally:
        await admin.close()
    assert await scene.run(scene.ada, "select config_id from rag.push_config") == []

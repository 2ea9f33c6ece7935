"""Push notifications through the public doors: a real A2A server, real couriers, a real webhook that checks them."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import asyncpg
import httpx
import jwt
import pytest
from click.testing import CliRunner, Result
from starlette.responses import Response

from rag.cli import cli
from rag.db.migrate import install_seal_keys
from rag.db.pool import Database
from rag.identity.scopes import Audience
from rag.identity.seal import load_seal_keys
from rag.identity.tls import ensure_development_tls
from rag.push import store
from rag.push.values import MAX_CONFIGS, DeadPush, Pace
from rag.tasks import store as task_store
from rag.tasks.values import EventKind, TaskState
from rag.tenants.operator import Tenant
from tests.support import tasks
from tests.support.agents import Rpc, a2a_server, message, worker
from tests.support.webhooks import QUICK, Receiver, couriers, loopback, receiver, verified
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
PAGE = Path(__file__).parents[2] / "docs" / "push.md"
CREATE, GET = "CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig"
LIST, DELETE = "ListTaskPushNotificationConfigs", "DeleteTaskPushNotificationConfig"
NOT_FOUND, INVALID, UNSUPPORTED = -32001, -32602, -32004


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server, two tenants, a webhook, and a database by which the test plays the worker that runs tasks."""

    world: World
    base: str
    acme: Tenant
    rival: Tenant
    database: Database
    http: httpx.AsyncClient
    hook: Receiver

    def rpc(self, tenant: Tenant | None = None, *, user: str = "ada") -> Rpc:
        """Return a client for a user of `tenant` (acme)."""
        token = self.world.token(tenant or self.acme, audience=Audience.A2A, user=user)
        return Rpc(base=self.base, token=token, http=self.http)

    async def task(self, **push: object) -> UUID:
        """Have a task accepted for ada, with a webhook if one is described."""
        configuration: dict[str, object] = {"returnImmediately": True}
        if push:
            configuration["taskPushNotificationConfig"] = push
        answer = await self.rpc().call("SendMessage", {**message(), "configuration": configuration})
        return UUID(answer["task"]["id"])

    async def status(self, task_id: UUID, state: TaskState, text: str) -> None:
        """Append a status to the task's log, as its run would."""
        ada = self.world.principal(self.acme)
        await tasks.status(self.database, ada, task_id, state, text, fence=None)

    async def story(self, task_id: UUID) -> None:
        """Work twice and complete: events 2 to 4."""
        await self.status(task_id, TaskState.WORKING, "searching")
        await self.status(task_id, TaskState.WORKING, "reading")
        await self.status(task_id, TaskState.COMPLETED, "done")

    async def outbox(self) -> list[asyncpg.Record]:
        """Return the outbox as only a superuser sees it."""
        connection = await asyncpg.connect(self.world.superuser_url)
        try:
            return await connection.fetch("select * from queue.push")
        finally:
            await connection.close()

    async def drained(self) -> None:
        """Wait until nothing is left to tell."""
        with anyio.fail_after(BOUND_S):
            while await self.outbox():  # noqa: ASYNC110  # the database tells nobody
                await anyio.sleep(0.02)

    async def rested(self) -> None:
        """Wait until everything is told and noted: whoever is stopped before that tells it again."""
        with anyio.fail_after(BOUND_S):
            while any(row["due_at"] for row in await self.outbox()):  # noqa: ASYNC110  # as above
                await anyio.sleep(0.02)

    async def given_up(self) -> DeadPush:
        """Wait until one webhook is given up, and return what an operator sees of it."""
        async with self.world.operator() as operator:
            with anyio.fail_after(BOUND_S):
                while not (dead := await store.dead(operator.database)):  # noqa: ASYNC110  # as above
                    await anyio.sleep(0.02)
        (only,) = dead
        return only


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """One replica and one webhook; couriers are the tests' own, and tell whatever there is in the database."""
    async with _scene(world) as scene:
        yield scene


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """The same for all tests in which there is no courier."""
    async with world(cluster) as own, _scene(own) as stage:
        yield stage


@pytest.fixture(name="quiet")
async def quiet_fixture(stage: Scene) -> Scene:
    """A scene without couriers, and two tenants that no other test knows."""
    acme, rival = [await stage.world.tenant(f"{name}-{uuid4()}") for name in ("acme", "rival")]
    return dataclasses.replace(stage, acme=acme, rival=rival)


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    world = loopback(world)
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with (
        world.database() as database,
        a2a_server(world) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
        receiver() as hook,
    ):
        yield Scene(world=world, base=base, acme=acme, rival=rival, database=database, http=http, hook=hook)


# --- what is told


async def test_a_webhook_that_comes_with_the_message_is_told_every_event_once_and_in_order(scene: Scene) -> None:
    async with couriers(scene.world, scene.base):
        task_id = await scene.task(url=scene.hook.url)
        await scene.story(task_id)
        received = await scene.hook.until(4)
        await scene.drained()
    assert [one.event_id for one in received] == [f"{task_id}/{seq}" for seq in (1, 2, 3, 4)]
    assert [next(iter(one.payload)) for one in received] == ["task", "statusUpdate", "statusUpdate", "statusUpdate"]
    assert received[0].payload["task"]["status"]["state"] == "TASK_STATE_SUBMITTED"
    last = received[-1].payload["statusUpdate"]
    assert (last["taskId"], last["status"]["state"]) == (str(task_id), "TASK_STATE_COMPLETED")
    assert last["status"]["message"]["parts"][0]["text"] == "done"
    assert {one.headers["content-type"] for one in received} == {"application/a2a+json"}


async def test_the_worker_process_tells_webhooks_beside_its_runs(scene: Scene) -> None:
    settings = dataclasses.replace(scene.world.settings, a2a_public_url=scene.base)
    async with worker(settings):
        task_id = await scene.task(url=scene.hook.url)
        await scene.rpc().call("CancelTask", {"id": str(task_id)})
        received = await scene.hook.when(lambda: "TASK_STATE_CANCELED" in str(scene.hook.received[-1:]))
        await scene.drained()
    assert scene.hook.seqs == list(range(1, len(received) + 1))
    assert (await verified(received[-1], base=scene.base, audience=scene.hook.url.removesuffix("/hook")))["iss"]


async def test_a_webhook_that_comes_later_is_told_the_task_as_it_is_and_what_follows(scene: Scene) -> None:
    task_id = await scene.task()
    await scene.status(task_id, TaskState.WORKING, "searching")
    async with couriers(scene.world, scene.base):
        await scene.rpc().call(CREATE, {"taskId": str(task_id), "url": scene.hook.url})
        first = (await scene.hook.until(1))[0]
        await scene.status(task_id, TaskState.COMPLETED, "done")
        await scene.hook.until(2)
        await scene.drained()
    assert scene.hook.seqs == [2, 3]
    assert first.payload["task"]["status"]["state"] == "TASK_STATE_WORKING"
    assert first.payload["task"]["status"]["message"]["parts"][0]["text"] == "searching"


async def test_a_webhook_for_a_task_that_has_ended_is_told_the_end(scene: Scene) -> None:
    task_id = await scene.task()
    await scene.story(task_id)
    async with couriers(scene.world, scene.base):
        await scene.rpc().call(CREATE, {"taskId": str(task_id), "url": scene.hook.url})
        await scene.drained()
    (only,) = scene.hook.received
    assert (only.seq, only.payload["task"]["status"]["state"]) == (4, "TASK_STATE_COMPLETED")


async def test_a_receiver_verifies_the_signature_with_the_published_keys(scene: Scene) -> None:
    origin = scene.hook.url.removesuffix("/hook")
    async with couriers(scene.world, scene.base):
        task_id = await scene.task(url=scene.hook.url, id="mine")
        (one,) = await scene.hook.until(1)
    claims = await verified(one, base=scene.base, audience=origin)
    assert (claims["taskId"], claims["seq"], claims["configId"]) == (str(task_id), 1, "mine")
    assert claims["exp"] - claims["iat"] == 300
    assert one.headers["authorization"] == f"Bearer {one.headers['x-a2a-notification-signature']}"


async def test_the_code_of_the_docs_page_verifies_a_notification_and_nothing_else(scene: Scene) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  # our own page
    origin = scene.hook.url.removesuffix("/hook")
    async with couriers(scene.world, scene.base):
        await scene.task(url=scene.hook.url)
        (one,) = await scene.hook.until(1)

    async def check(headers: dict[str, str], body: bytes, *, audience: str = origin) -> Any:
        verify = partial(names["verified"], headers, body, issuer=scene.base, audience=audience)
        return await anyio.to_thread.run_sync(verify)

    assert (await check(one.headers, one.body))["seq"] == 1
    with pytest.raises(ValueError, match="body"):
        await check(one.headers, one.body + b" ")
    with pytest.raises(ValueError, match="event id"):
        await check({**one.headers, "x-a2a-notification-id": f"{uuid4()}/1"}, one.body)
    with pytest.raises(jwt.InvalidAudienceError):
        await check(one.headers, one.body, audience="https://other.example")


async def test_the_receivers_own_credentials_are_shown_to_it(scene: Scene) -> None:
    authentication = {"scheme": "Basic", "credentials": "c2VjcmV0"}
    async with couriers(scene.world, scene.base):
        await scene.task(url=scene.hook.url, token="a token", authentication=authentication)
        (one,) = await scene.hook.until(1)
    assert one.headers["authorization"] == "Basic c2VjcmV0"
    assert one.headers["x-a2a-notification-token"] == "a token"
    assert one.headers["x-a2a-notification-signature"]


async def test_a_receiver_with_a_certificate_is_told_over_tls(scene: Scene, tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path)
    settings = dataclasses.replace(scene.world.settings, ca_certificate=files.ca)
    trusting = dataclasses.replace(scene.world, settings=settings)
    async with receiver(tls=files) as hook, couriers(trusting, scene.base):
        await scene.story(await scene.task(url=hook.url))
        await hook.until(4)
        await scene.drained()
    assert hook.seqs == [1, 2, 3, 4]


# --- what goes wrong


async def test_a_receiver_whose_certificate_nobody_vouches_for_is_told_nothing(scene: Scene, tmp_path: Path) -> None:
    async with receiver(tls=ensure_development_tls(tmp_path)) as hook, couriers(scene.world, scene.base):
        await scene.task(url=hook.url)
        dead = await scene.given_up()
    assert (dead.attempts, dead.reason) == (QUICK.attempts, "unreachable")
    assert not hook.received


async def test_credentials_outlive_the_rotation_of_the_keys_that_close_them(scene: Scene, tmp_path: Path) -> None:
    """Whoever reads them closes them under the newer key; those that nobody has read for two rotations are lost."""
    busy = await scene.task(url=scene.hook.url, token="busy")
    idle = await scene.task(url=scene.hook.url, token="idle")
    async with couriers(scene.world, scene.base):
        await scene.hook.until(2)
        await scene.rested()
    once = await _rotated(scene.world, tmp_path / "once.json")
    await scene.status(busy, TaskState.WORKING, "searching")
    async with couriers(once, scene.base):
        await scene.hook.until(3)
        await scene.rested()
    twice = await _rotated(once, tmp_path / "twice.json")
    async with twice.database() as database, couriers(twice, scene.base):
        for task_id in (busy, idle):
            ada = twice.principal(scene.acme)
            await tasks.status(database, ada, task_id, TaskState.WORKING, "reading", fence=None)
        dead = await scene.given_up()
        await scene.hook.until(4)
    assert (dead.task_id, dead.reason) == (idle, "credentials cannot be opened")
    assert [one.headers["x-a2a-notification-token"] for one in scene.hook.received[2:]] == ["busy", "busy"]


async def _rotated(world: World, path: Path) -> World:
    """Return the world after its seal keys were rotated: a new one is active, the one before it is kept."""
    assert world.settings.seal_keys_file is not None
    assert world.settings.owner_database_url is not None
    before = load_seal_keys(world.settings.seal_keys_file)
    kid = token_hex(4)
    held = {kid: token_bytes(32), before.active: before.keys[before.active]}
    encoded = {name: base64.b64encode(key).decode() for name, key in held.items()}
    await anyio.Path(path).write_text(json.dumps({"active": kid, "keys": encoded}), encoding="utf-8")
    await install_seal_keys(world.settings.owner_database_url, load_seal_keys(path))
    return dataclasses.replace(world, settings=dataclasses.replace(world.settings, seal_keys_file=path))


async def test_what_a_receiver_refuses_is_told_again_until_it_is_taken_and_nothing_overtakes_it(scene: Scene) -> None:
    refusals = iter([500, 503, 302, 404])

    def answer(one: object) -> Response:
        del one
        return Response(status_code=next(refusals, 204), headers={"location": "https://elsewhere.example/"})

    scene.hook.answer = answer
    async with couriers(scene.world, scene.base):
        await scene.story(await scene.task(url=scene.hook.url))
        await scene.hook.when(lambda: 4 in scene.hook.seqs)
        await scene.drained()
    assert scene.hook.seqs == [1, 1, 1, 1, 1, 2, 3, 4]
    ids = {one.headers["x-a2a-notification-signature"] for one in scene.hook.received}
    assert len(ids) == len(scene.hook.received), "each attempt is signed anew"


async def test_a_receiver_says_when_it_wants_to_be_told_again(scene: Scene) -> None:
    scene.hook.answer = lambda _: Response(status_code=503, headers={"retry-after": "1800"})
    async with couriers(scene.world, scene.base):
        await scene.task(url=scene.hook.url)
        with anyio.fail_after(BOUND_S):
            while not (row := (await scene.outbox())[0])["attempts"]:  # noqa: ASYNC110  # the database tells nobody
                await anyio.sleep(0.02)
    assert (row["attempts"], row["reason"]) == (1, "HTTP 503")
    assert row["due_at"] - datetime.now(UTC) > timedelta(minutes=25), "its own pause is shorter than a second"


async def test_an_event_that_cannot_be_written_is_given_up_like_one_that_nobody_takes(scene: Scene) -> None:
    async with couriers(scene.world, scene.base):
        task_id = await scene.task(url=scene.hook.url)
        await scene.hook.until(1)
        async with scene.database.tenant(scene.world.principal(scene.acme)) as session:
            half: dict[str, object] = {"state": "working"}
            await task_store.append(session, task_id, EventKind.STATUS, half, fence=None, state=TaskState.WORKING)
        dead = await scene.given_up()
    assert (dead.next_seq, dead.attempts, dead.reason) == (2, QUICK.attempts, "cannot be written")
    assert scene.hook.seqs == [1]


async def test_a_webhook_that_never_takes_anything_is_given_up_visibly_and_goes_on_when_told_to(scene: Scene) -> None:
    scene.hook.answer = lambda _: Response(status_code=500)
    async with couriers(scene.world, scene.base), scene.world.operator() as operator:
        task_id = await scene.task(url=scene.hook.url)
        await scene.hook.until(QUICK.attempts)
        only = await scene.given_up()
        await scene.story(task_id)
        assert (only.task_id, only.next_seq, only.attempts, only.reason) == (task_id, 1, QUICK.attempts, "HTTP 500")
        assert scene.hook.seqs == [1] * QUICK.attempts, "what is given up is not tried again by itself"
        scene.hook.answer = lambda _: Response(status_code=200)
        assert await store.redeliver(operator.database, scene.rival.tenant_id) == 0
        assert await store.redeliver(operator.database, scene.rival.tenant_id, only.push_id) == 0
        assert await store.redeliver(operator.database, scene.acme.tenant_id, only.push_id) == 1
        await scene.hook.until(QUICK.attempts + 4)
        await scene.drained()
    assert scene.hook.seqs[QUICK.attempts :] == [1, 2, 3, 4]


async def test_an_operator_sees_and_revives_it_on_the_command_line(scene: Scene) -> None:
    scene.hook.answer = lambda _: Response(status_code=410)

    async def bulkhead(*arguments: str) -> Result:
        invoke = partial(CliRunner().invoke, cli, arguments, env=scene.world.settings.to_env())
        return await anyio.to_thread.run_sync(invoke)

    async with couriers(scene.world, scene.base):
        await scene.task(url=scene.hook.url)
        dead = await scene.given_up()
        listed = await bulkhead("push", "dead", "acme", "--json")
        (shown,) = json.loads(listed.output)
        assert (shown["push_id"], shown["reason"]) == (str(dead.push_id), "HTTP 410")
        assert scene.hook.url not in listed.output
        assert str(dead.push_id) in (await bulkhead("push", "dead")).output
        assert json.loads((await bulkhead("push", "dead", "rival", "--json")).output) == []
        assert (await bulkhead("push", "redeliver", "rival", str(dead.push_id))).exit_code != 0
        scene.hook.answer = lambda _: Response(status_code=200)
        assert "1 webhooks" in (await bulkhead("push", "redeliver", "acme", str(dead.push_id))).output
        await scene.hook.until(2)
        await scene.rested()
    assert scene.hook.seqs == [1, 1]


async def test_a_receiver_that_is_gone_is_given_up_at_once(scene: Scene) -> None:
    scene.hook.answer = lambda _: Response(status_code=410)
    async with couriers(scene.world, scene.base):
        await scene.task(url=scene.hook.url)
        dead = await scene.given_up()
    assert (dead.attempts, dead.reason) == (1, "HTTP 410")
    assert scene.hook.seqs == [1]


async def test_a_webhook_of_a_revoked_caller_is_told_nothing_more(scene: Scene) -> None:
    task_id = await scene.task(url=scene.hook.url)
    async with scene.world.operator() as operator:
        await operator.revoke_user(scene.acme.tenant_id, "ada")
    async with couriers(scene.world, scene.base):
        dead = await scene.given_up()
    assert (dead.task_id, dead.reason) == (task_id, "revoked")
    assert not scene.hook.received


async def test_two_processes_tell_each_event_once(scene: Scene) -> None:
    async with couriers(scene.world, scene.base, processes=2):
        ids = [await scene.task(url=scene.hook.url) for _ in range(6)]
        async with anyio.create_task_group() as group:
            for task_id in ids:
                group.start_soon(scene.story, task_id)
        await scene.hook.until(24)
        await scene.drained()
    by_task = {
        task_id: [one.seq for one in scene.hook.received if one.event_id.startswith(str(task_id))] for task_id in ids
    }
    assert by_task == {task_id: [1, 2, 3, 4] for task_id in ids}


async def test_a_slow_receiver_holds_up_neither_others_nor_more_than_its_tenants_share(scene: Scene) -> None:
    pace = Pace(first_s=0.05, lease_s=30.0, timeout_s=15.0, per_tenant=2)
    async with couriers(scene.world, scene.base, pace=pace), receiver() as slow:
        slow.blocked = anyio.Event()
        for _ in range(3):
            await scene.task(url=slow.url)
        await slow.until(2)
        rpc = scene.rpc(scene.rival)
        params = {
            **message(),
            "configuration": {"taskPushNotificationConfig": {"url": scene.hook.url}, "returnImmediately": True},
        }
        await rpc.call("SendMessage", params)
        await scene.hook.until(1)
        assert len(slow.received) == 2, "two at a time are one tenant's share"
        slow.blocked.set()
        await slow.until(3)


async def test_a_webhook_that_is_deleted_is_told_nothing_more(scene: Scene) -> None:
    rpc = scene.rpc()
    async with couriers(scene.world, scene.base):
        task_id = await scene.task(url=scene.hook.url, id="mine")
        await scene.hook.until(1)
        async with receiver() as other:
            await rpc.call(CREATE, {"taskId": str(task_id), "url": other.url, "id": "other"})
            await other.until(1)
            for _ in range(2):
                assert await rpc.call(DELETE, {"taskId": str(task_id), "id": "mine"}) in ({}, None)
            assert (await rpc.error(GET, {"taskId": str(task_id), "id": "mine"}))["code"] == NOT_FOUND
            await scene.story(task_id)
            await other.until(4)
            await scene.drained()
    assert scene.hook.seqs == [1]


# --- who may, and what


async def test_credentials_are_taken_and_never_given_back_and_lie_closed_in_the_database(quiet: Scene) -> None:
    task_id = str(await quiet.task())
    rpc = quiet.rpc()
    secret = {"token": "tell-nobody", "authentication": {"scheme": "Bearer", "credentials": "nobody-at-all"}}
    shown = {"id": "mine", "taskId": task_id, "url": quiet.hook.url, "authentication": {"scheme": "Bearer"}}
    assert await rpc.call(CREATE, {"taskId": task_id, "id": "mine", "url": quiet.hook.url, **secret}) == shown
    assert await rpc.call(GET, {"taskId": task_id, "id": "mine"}) == shown
    assert await rpc.call(LIST, {"taskId": task_id}) == {"configs": [shown]}
    connection = await asyncpg.connect(quiet.world.superuser_url)
    try:
        stored = str(await connection.fetch("select p.*, encode(p.secrets, 'escape') from rag.push_config p"))
    finally:
        await connection.close()
    assert quiet.hook.url in stored
    assert "tell-nobody" not in stored
    assert "nobody-at-all" not in stored


async def test_configurations_are_paged_replaced_and_bounded(quiet: Scene) -> None:
    task_id = str(await quiet.task())
    rpc = quiet.rpc()
    for number in range(MAX_CONFIGS):
        await rpc.call(CREATE, {"taskId": task_id, "id": f"hook-{number}", "url": quiet.hook.url})
    await rpc.call(CREATE, {"taskId": task_id, "id": "hook-0", "url": f"{quiet.hook.url}/again"})
    assert (await rpc.error(CREATE, {"taskId": task_id, "url": quiet.hook.url}))["code"] == UNSUPPORTED
    found: list[str] = []
    token = ""
    for _ in range(MAX_CONFIGS):
        page = await rpc.call(LIST, {"taskId": task_id, "pageSize": 3, "pageToken": token})
        found += [one["url"].removeprefix(quiet.hook.url) + one["id"] for one in page["configs"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert found == ["/againhook-0", *(f"hook-{number}" for number in range(1, MAX_CONFIGS))]
    assert (await rpc.error(LIST, {"taskId": task_id, "pageToken": "invented"}))["code"] == INVALID


async def test_others_have_no_webhooks_on_a_task_that_they_do_not_see_and_see_none_of_its_makers(quiet: Scene) -> None:
    task_id = str(await quiet.task(url=quiet.hook.url, id="mine"))
    for other in (quiet.rpc(quiet.rival), quiet.rpc(quiet.rival, user="eve")):
        for method, params in (
            (CREATE, {"url": quiet.hook.url}),
            (GET, {"id": "mine"}),
            (LIST, {}),
            (DELETE, {"id": "mine"}),
        ):
            refused = await other.error(method, {"taskId": task_id, **params})
            unknown = await other.error(method, {"taskId": str(uuid4()), **params})
            assert refused["code"] == NOT_FOUND
            assert refused == unknown
    # a task of a caller without groups is the whole tenant's; its webhooks are not
    bob = quiet.rpc(user="bob")
    assert await bob.call(LIST, {"taskId": task_id}) == {}
    assert (await bob.error(GET, {"taskId": task_id, "id": "mine"}))["code"] == NOT_FOUND
    await bob.call(DELETE, {"taskId": task_id, "id": "mine"})
    await bob.call(CREATE, {"taskId": task_id, "id": "mine", "url": f"{quiet.hook.url}/bob"})
    assert (await quiet.rpc().call(GET, {"taskId": task_id, "id": "mine"}))["url"] == quiet.hook.url


@pytest.mark.parametrize(
    "config",
    [
        {"url": "ftp://example.com/hook"},
        {"url": "http://example.com/hook"},
        {"url": "https://user:pass@example.com/hook"},
        {"url": "https://169.254.169.254/latest"},
        {"url": "https://[fd00::1]/"},
        {"url": "https://example.com/hook", "token": "two\r\nlines"},
        {"url": "https://example.com/hook", "authentication": {"scheme": "Bea rer", "credentials": "x"}},
        {"url": "https://example.com/hook", "authentication": {"scheme": "Bearer", "credentials": "x\r\nx-evil: 1"}},
        {"url": "https://example.com/hook", "id": "i" * 257},
    ],
)
async def test_what_cannot_be_told_safely_is_refused_and_with_it_the_message(
    quiet: Scene, config: dict[str, object]
) -> None:
    task_id = str(await quiet.task())
    assert (await quiet.rpc().error(CREATE, {"taskId": task_id, **config}))["code"] == INVALID
    params = {**message(), "configuration": {"taskPushNotificationConfig": config}}
    assert (await quiet.rpc().error("SendMessage", params))["code"] == INVALID
    assert (await quiet.rpc().call("ListTasks", {}))["totalSize"] == 1

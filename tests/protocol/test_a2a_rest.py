"""What only HTTP+JSON has: paths, tenants in them, queries, media types, statuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from rag.identity.scopes import Audience
from rag.tenants.operator import Tenant
from tests.support.agents import a2a_replica, message
from tests.support.bindings import Refused, RestBinding
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
A2A_JSON = "application/a2a+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server and a tenant."""

    world: World
    tenant: Tenant
    base: str
    http: httpx.AsyncClient
    token: str

    def client(self, **of: str) -> RestBinding:
        """Return a client."""
        return RestBinding(base=self.base, token=self.token, http=self.http, **of)

    async def send(self, verb: str, path: str, **of: object) -> httpx.Response:
        """Send a request as the tenant's user."""
        headers = {"authorization": f"Bearer {self.token}", "A2A-Version": "1.0", **dict(of.pop("headers", {}))}  # pyright: ignore[reportArgumentType, reportCallIssue]
        return await self.http.request(verb, f"{self.base}/a2a/rest{path}", headers=headers, **of)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """A server for all tests of the file."""
    async with world(cluster) as own, a2a_replica(own, grpc=False) as replica, httpx.AsyncClient() as http:
        tenant = await own.tenant("acme")
        token = own.token(tenant, audience=Audience.A2A)
        yield Scene(world=own, tenant=tenant, base=replica.base, http=http, token=token)


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> Scene:
    """The file's server, with a tenant of the test's own."""
    tenant = await stage.world.tenant(f"acme-{uuid4().hex[:8]}")
    token = stage.world.token(tenant, audience=Audience.A2A)
    return Scene(world=stage.world, tenant=tenant, base=stage.base, http=stage.http, token=token)


def _at_once() -> dict[str, object]:
    return {**message(), "configuration": {"returnImmediately": True}}


async def test_every_operation_is_there_below_the_tenant_s_own_path_and_no_other_s(scene: Scene) -> None:
    below = scene.client(below=f"/{scene.tenant.tenant_id}")
    task = (await below.call("SendMessage", _at_once()))["task"]
    assert (await below.call("GetTask", {"id": task["id"]}))["id"] == task["id"]
    assert (await below.call("ListTasks", {}))["totalSize"] == 1
    async with below.stream("SubscribeToTask", {"id": task["id"]}) as events:
        assert (await anext(events)).id == 1
    for other in (str(uuid4()), "acme", "%2e%2e"):
        elsewhere = scene.client(below=f"/{other}")
        for operation, params in (
            ("GetTask", {"id": task["id"]}),
            ("ListTasks", {}),
            ("CancelTask", {"id": task["id"]}),
        ):
            with pytest.raises(Refused) as refused:
                await elsewhere.call(operation, params)
            assert (refused.value.status, refused.value.reason) == (400, "INVALID_PARAMS")
        with pytest.raises(Refused):
            await elsewhere.call("SendMessage", _at_once())
    assert (await below.call("CancelTask", {"id": task["id"]}))["status"]["state"] == "TASK_STATE_CANCELED"


async def test_a_tenant_in_the_query_of_a_post_is_compared_as_well(scene: Scene) -> None:
    task = (await scene.client().call("SendMessage", _at_once()))["task"]
    for verb, path in (
        ("POST", f"/tasks/{task['id']}:cancel"),
        ("POST", f"/tasks/{task['id']}:subscribe"),
        ("GET", f"/tasks/{task['id']}:subscribe"),
        ("GET", f"/tasks/{task['id']}"),
    ):
        refused = await scene.send(verb, path, params={"tenant": str(uuid4())})
        assert refused.status_code == 400
        assert "tenant" in refused.json()["error"]["message"]


@pytest.mark.parametrize("named", ["application/json", A2A_JSON, "application/a2a+json; charset=utf-8"])
async def test_a_body_is_called_by_either_media_type(scene: Scene, named: str) -> None:
    response = await scene.send(
        "POST",
        "/message:send",
        content=httpx.Request("POST", "http://x", json=_at_once()).content,
        headers={"content-type": named},
    )
    assert (response.status_code, response.headers["content-type"]) == (200, A2A_JSON)


@pytest.mark.parametrize("named", ["text/plain", "application/xml", "multipart/form-data", ""])
async def test_another_media_type_is_refused(scene: Scene, named: str) -> None:
    response = await scene.send("POST", "/message:send", content=b"{}", headers={"content-type": named})
    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["reason"] == "CONTENT_TYPE_NOT_SUPPORTED"


async def test_a_post_without_a_body_needs_no_media_type(scene: Scene) -> None:
    task = (await scene.client().call("SendMessage", _at_once()))["task"]
    response = await scene.send("POST", f"/tasks/{task['id']}:cancel")
    assert response.json()["status"]["state"] == "TASK_STATE_CANCELED"


@pytest.mark.parametrize(
    ("accept", "told", "refused"),
    [
        ("*/*", A2A_JSON, "application/json"),
        (A2A_JSON, A2A_JSON, A2A_JSON),
        ("application/json", "application/json", "application/json"),
        (f"application/json, {A2A_JSON}", A2A_JSON, A2A_JSON),
    ],
)
async def test_an_answer_is_of_the_media_type_that_is_accepted(
    scene: Scene, accept: str, told: str, refused: str
) -> None:
    assert (await scene.send("GET", "/tasks", headers={"accept": accept})).headers["content-type"] == told
    unknown = await scene.send("GET", f"/tasks/{uuid4()}", headers={"accept": accept})
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, refused)


async def test_a_version_may_come_in_the_query(scene: Scene) -> None:
    url = f"{scene.base}/a2a/rest/tasks"
    headers = {"authorization": f"Bearer {scene.token}"}
    assert (await scene.http.get(url, params={"A2A-Version": "1.0"}, headers=headers)).status_code == 200
    for version in ("1.7", "0.3", ""):
        refused = await scene.http.get(url, params={"A2A-Version": version}, headers=headers)
        assert refused.json()["error"]["details"][0]["reason"] == "VERSION_NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("verb", "path", "content"),
    [
        ("POST", "/message:send", b"{"),
        ("POST", "/message:send", b"[]"),
        ("POST", "/message:send", b"null"),
        ("POST", "/message:send", b'{"message": []}'),
        ("POST", "/message:send", b'{"message": {"role": {}}}'),
        ("POST", "/message:send", b"[" * 2000),
        ("POST", "/message:stream", b'{"message": 7}'),
        ("POST", "/message:send", b"\xff\xfe"),
        ("POST", "/message:send", b""),
        ("GET", "/tasks?pageSize=many", b""),
        ("GET", "/tasks?status=TASK_STATE_DONE", b""),
        ("GET", "/tasks?pageSize=99999999999999999999", b""),
        ("GET", "/tasks?statusTimestampAfter=yesterday", b""),
        ("GET", "/tasks?pageToken=%00", b""),
        ("GET", "/tasks?contextId=%00", b""),
        ("GET", "/tasks/x?historyLength=few", b""),
    ],
)
async def test_a_hostile_request_is_refused_without_a_text_of_ours(
    scene: Scene, verb: str, path: str, content: bytes
) -> None:
    headers = {"content-type": "application/json"} if verb == "POST" else {}
    response = await scene.send(verb, path, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    for leak in ("Traceback", "Error(", "Exception", "select ", "Failed to parse", "recursion"):
        assert leak not in response.text


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "", 404),
        ("GET", "/", 404),
        ("GET", "/tasks/", 404),
        ("GET", "/message:send", 405),
        ("DELETE", "/tasks", 405),
        ("GET", "/a/b/c/d/e", 404),
        ("POST", "/v1/nothing", 404),
    ],
)
async def test_what_is_not_there_is_said_in_the_binding_s_own_form(
    scene: Scene, verb: str, path: str, status: int
) -> None:
    response = await scene.send(verb, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)

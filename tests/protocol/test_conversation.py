"""Tasks that ask, and tasks that are told something more: two replicas, a real worker, callers that come at any time.

docs/adr/0012-conversations.md. What a message to a working task may never be is taken and ignored.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from rag.identity.scopes import Audience
from rag.settings import Settings
from tests.support.agents import Rpc, a2a_server, message, worker
from tests.support.documents import put_raw_document
from tests.support.gated_model import gated_model
from tests.support.openai_server import serve_openai
from tests.support.served import served_at
from tests.support.workflow_scene import WorkflowScene, data, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, world
from workflows import accept
from workflows.forms import HITL_EXTENSION
from workflows.rag import RAG

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
BOUND_S = 30.0
WITHIN_S = 1.0
"""What the issue gives a cancel to reach the model (issue 5, item 2)."""
LAW = "It shall be unlawful for any person to use any manipulative device in the sale of any security."
QUOTE = 'It is "unlawful for any person to use any manipulative device" [1].'


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Two replicas, one caller, one document; no worker yet."""

    here: WorkflowScene
    there: Rpc
    """The other replica."""

    @property
    def settings(self) -> Settings:
        """Of a worker."""
        return self.here.settings

    async def tell(self, rpc: Rpc, task: dict[str, Any], *parts: Any, **fields: Any) -> dict[str, Any]:
        """Send a message to the task and return the whole JSON-RPC answer."""
        sent: dict[str, Any] = message(taskId=task["id"], **fields)
        sent["message"]["parts"] = list(parts)
        params = {**sent, "configuration": {"returnImmediately": True}}
        return (await rpc.raw("SendMessage", params)).json()

    async def state(self, task: dict[str, Any]) -> str:
        """Return where the task stands."""
        found = await self.there.call("GetTask", {"id": task["id"], "historyLength": 0})
        return str(found["status"]["state"]).removeprefix("TASK_STATE_")


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """Two replicas on one database, for all tests of the file."""
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(world(cluster))
        here = await stack.enter_async_context(workflow_scene(own))
        other = await stack.enter_async_context(a2a_server(own))
        yield Scene(here=here, there=replace(here.rpc, base=other))


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> AsyncGenerator[Scene]:
    """A tenant of the test's own, whose tasks are canceled afterwards: no later worker is to take them."""
    here = await with_new_tenant(stage.here)
    own = here.world
    async with own.database() as database, database.tenant(own.principal(here.acme)) as session:
        await put_raw_document(session, title="Law", text=LAW)
    yield Scene(here=here, there=replace(here.rpc, base=stage.there.base))
    for task in (await here.rpc.call("ListTasks", {"pageSize": 100}))["tasks"]:
        await here.rpc.raw("CancelTask", {"id": task["id"]})


@pytest.fixture(name="dear")
async def dear_fixture(scene: Scene) -> AsyncGenerator[tuple[Settings, list[dict[str, Any]]]]:
    """Settings of a worker whose model says that one answer cost more than the task may, and the requests it got."""
    async with serve_openai() as model:
        model.pieces, model.prompt_tokens = (QUOTE,), RAG.bound.tokens + 1
        yield replace(scene.settings, **served_at(model.base_url, "dear")), model.requests


async def _ask_for_more(scene: Scene, settings: Settings) -> dict[str, Any]:
    async with worker(settings):
        task = await scene.here.send(text("What is unlawful?"))
        asked = await scene.here.follow(task)
    assert asked.state == "INPUT_REQUIRED"
    assert "May it go on" in asked.told
    return task


async def test_a_task_that_has_used_what_it_may_asks_and_goes_on_with_what_it_had(
    scene: Scene, dear: tuple[Settings, list[dict[str, Any]]]
) -> None:
    settings, requests = dear
    task = await _ask_for_more(scene, settings)
    # the worker is gone; the question is not, on any replica, and says in a form what may be answered
    status = (await scene.there.call("GetTask", {"id": task["id"]}))["status"]
    form = status["message"]["metadata"][HITL_EXTENSION]
    assert (form["type"], [one["name"] for one in form["tools"]]) == ("tool_approval_request", ["raise_bound"])
    assert status["message"]["extensions"] == [HITL_EXTENSION]
    for words in ("perhaps", "", "x" * 5000):
        refused = await scene.tell(scene.there, task, text(words))
        assert refused["error"]["code"] == -32602, refused
    assert await scene.state(task) == "INPUT_REQUIRED"
    answer = {"type": "tool_approval_response", "approvals": [{"id": form["tools"][0]["id"], "approved": True}]}
    taken = await scene.tell(scene.there, task, text("go on"), metadata={HITL_EXTENSION: answer})
    assert taken["result"]["task"]["status"]["state"] == "TASK_STATE_WORKING"
    async with worker(settings):
        ended = await scene.here.follow(taken["result"]["task"])
    assert ended.state == "COMPLETED"
    words, evidence = ended.artifacts["answer"]
    assert words == QUOTE
    assert len(evidence["citations"]) == 1
    assert len(requests) == 1, "the answer that was paid for is used, and not asked for again"
    history = (await scene.there.call("GetTask", {"id": task["id"]}))["history"]
    assert [one["parts"][0]["text"] for one in history if one["role"] == "ROLE_USER"] == ["What is unlawful?", "go on"]


async def test_a_task_that_may_not_go_on_says_so_and_ends(
    scene: Scene, dear: tuple[Settings, list[dict[str, Any]]]
) -> None:
    settings, _ = dear
    task = await _ask_for_more(scene, settings)
    taken = await scene.tell(scene.there, task, text("no"))
    async with worker(settings):
        ended = await scene.here.follow(taken["result"]["task"])
    assert (ended.state, "its bound was not raised" in ended.told) == ("FAILED", True)


async def test_a_question_that_nobody_answers_ends_the_task_whichever_worker_comes(
    scene: Scene, dear: tuple[Settings, list[dict[str, Any]]]
) -> None:
    settings, _ = dear
    task = await _ask_for_more(scene, replace(settings, input_timeout_s=0.5))
    async with worker(settings):
        with anyio.fail_after(BOUND_S):
            async with scene.there.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
                told = [event.result["statusUpdate"] async for event in events if "statusUpdate" in event.result]
    assert told[-1]["status"]["state"] == "TASK_STATE_FAILED"
    assert "nobody answered" in told[-1]["status"]["message"]["parts"][0]["text"]
    late = await scene.tell(scene.there, task, text("yes"))
    assert late["error"]["code"] == -32004


async def test_two_answers_at_once_are_one_answer_and_one_refusal(
    scene: Scene, dear: tuple[Settings, list[dict[str, Any]]]
) -> None:
    settings, _ = dear
    task = await _ask_for_more(scene, settings)
    answers: list[dict[str, Any]] = []

    async def answer(rpc: Rpc, word: str) -> None:
        answers.append(await scene.tell(rpc, task, text(word)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer, scene.here.rpc, "yes")
        tasks.start_soon(answer, scene.there, "no")
    refused = [one["error"]["code"] for one in answers if "error" in one]
    assert refused == [-32004]


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_workflow_that_takes_no_messages_refuses_them_while_it_works(scene: Scene, replicas: int) -> None:
    rpc = scene.here.rpc if replicas == 1 else scene.there
    async with gated_model(QUOTE) as model:
        settings = replace(scene.settings, **served_at(model.base_url, "slow"))
        async with worker(settings):
            task = await scene.here.send(text("What is unlawful?"))
            with anyio.fail_after(BOUND_S):
                answer = await model.answer(0)
            refused = await scene.tell(rpc, task, text("and what is lawful?"))
            assert (refused["error"]["code"], "takes no message" in refused["error"]["message"]) == (-32004, True)
            answer.allow(1)
            ended = await scene.here.follow(task)
        assert ended.state == "COMPLETED"


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_message_to_a_working_task_is_heard_or_refused_whenever_it_comes(scene: Scene, replicas: int) -> None:
    """Sent at every moment of a task's life, to the last: what is taken is in the result, what is not is refused."""
    rpc = scene.here.rpc if replicas == 1 else scene.there
    taken: dict[str, bool] = {}
    async with worker(scene.settings):
        for moment in range(12):
            mine, more = f"{replicas}-{moment}.md", f"{replicas}-{moment}-more.md"
            task = await scene.here.send(data(documents=[_document(mine)]), skill="ingest")
            with anyio.fail_after(BOUND_S):
                async with scene.here.rpc.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
                    seen = 0
                    async for _ in events:
                        seen += 1
                        if seen > moment:
                            break
            answer = await scene.tell(rpc, task, data(documents=[_document(more)]))
            taken[more] = "result" in answer
            if not taken[more]:
                assert answer["error"]["code"] == -32004
            assert (await scene.here.follow(task)).state == "COMPLETED"
    stored = await scene.here.documents()
    assert {name: name in stored for name in taken} == taken
    assert any(taken.values())
    assert not all(taken.values())


async def test_a_task_takes_messages_up_to_a_bound(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "MAX_RECEIVED_BYTES", 2_500)
    task = await scene.here.send(data(documents=[_document("first.md")]), skill="ingest")
    answers = [await scene.tell(scene.here.rpc, task, text("x" * 900)) for _ in range(4)]
    assert [one["error"]["code"] for one in answers if "error" in one] == [-32004]
    assert "as much as it takes" in answers[3]["error"]["message"]


async def test_only_whoever_started_a_task_may_send_to_it(
    scene: Scene, dear: tuple[Settings, list[dict[str, Any]]]
) -> None:
    settings, _ = dear
    task = await _ask_for_more(scene, settings)
    bob = replace(scene.there, token=scene.here.world.token(scene.here.acme, audience=Audience.A2A, user="bob"))
    assert (await bob.call("GetTask", {"id": task["id"]}))["id"] == task["id"], "he sees it: it has no groups"
    refused = await scene.tell(bob, task, text("yes"))
    assert "only whoever started a task" in refused["error"]["message"]
    assert await scene.state(task) == "INPUT_REQUIRED"


async def test_a_cancel_on_the_other_replica_reaches_the_model_under_a_running_node(scene: Scene) -> None:
    async with gated_model("word " * 3, "never said") as model:
        settings = replace(scene.settings, **served_at(model.base_url, "slow"))
        async with worker(settings):
            task = await scene.here.send(text("What is unlawful?"))
            with anyio.fail_after(BOUND_S):
                answer = await model.answer(0)
            answer.allow(1)
            assert (await scene.there.call("CancelTask", {"id": task["id"]}))["status"]["state"].endswith("CANCELED")
            with anyio.fail_after(WITHIN_S):
                await answer.left.wait()
            ended = await scene.here.follow(task)
    assert ended.state == "CANCELED"


def _document(source: str) -> dict[str, Any]:
    return {"source": source, "title": source, "text": f"Rule {uuid4()}: whoever sells a security tells its price."}

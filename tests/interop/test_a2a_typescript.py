"""@a2a-js/sdk by each of the three bindings, as a Node program uses it, against the processes (`make interop`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from a2a_server.protocol.outgoing import RESUME_EXTENSION
from tests.interop.conftest import AgentStage
from tests.support.node import run_node
from tests.support.webhooks import Received, verified
from workflows.forms import HITL_EXTENSION

pytestmark = [pytest.mark.anyio, pytest.mark.node]
BOUND_S = 90.0
ANSWER = "The notice period of the lease is three months. [1]"
Json = dict[str, Any]


def seqs(events: Sequence[Json]) -> list[int]:
    """Return the numbers of events, whatever they are of."""
    return [one["metadata"][RESUME_EXTENSION]["seq"] for event in events for one in event.values()]


def state(task: Mapping[str, Any]) -> str:
    """Return a task's state, or that of an update, without its prefix."""
    return task["status"]["state"].removeprefix("TASK_STATE_")


def bindings(card: Json) -> set[str]:
    """Return the bindings that a card names."""
    return {one["protocolBinding"] for one in card["supportedInterfaces"]}


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_the_typescript_sdk_does_everything_that_it_can(agent: AgentStage, tmp_path: Path, binding: str) -> None:
    ended = await run_node(
        "agents.mjs",
        binding,
        home=tmp_path,
        bound_s=BOUND_S,
        BULKHEAD_URL=agent.base,
        BULKHEAD_TOKEN=await agent.token(),
        BULKHEAD_HOOK=agent.hook.url,
    )
    assert ended.status == 0, ended.stderr
    # the line before it is the SDK's own, about the card that was tampered with
    seen: Json = orjson.loads(ended.stdout.splitlines()[-1])
    assert (seen["transport"], seen["version"]) == (binding, "1.0")
    _cards_are_verified(seen)
    _answers_and_streams_are_whole(seen)
    _a_stream_is_taken_up_again(seen)
    _refusals_are_the_sdk_s_own_errors(seen)
    _an_asking_task_is_answered(seen)
    await _the_webhook_is_told(agent, seen["asking"]["id"])


def _cards_are_verified(seen: Json) -> None:
    assert bindings(seen["publicCard"]) == {"JSONRPC", "HTTP+JSON"}
    assert bindings(seen["card"]) == {"JSONRPC", "HTTP+JSON", "GRPC"}
    assert seen["card"]["signatures"]
    assert seen["forged"]["message"] == "No valid signatures found on agent card."
    # the SDK's defect that docs/clients.md tells how to get around
    assert seen["parsed"] == seen["forged"]


def _answers_and_streams_are_whole(seen: Json) -> None:
    answered, streamed = seen["answered"], seen["streamed"]
    assert state(answered) == "COMPLETED"
    (artifact,) = answered["artifacts"]
    text, data = artifact["parts"]
    assert text["text"] == ANSWER
    assert data["data"]["citations"][0]["verified"] is True
    assert streamed[0]["task"]
    assert state(streamed[-1]["statusUpdate"]) == "COMPLETED"
    assert seqs(streamed) == list(range(1, len(streamed) + 1))
    pieces = [event["artifactUpdate"] for event in streamed if "artifactUpdate" in event]
    assert pieces[-1]["artifact"]["parts"][0]["text"] == ANSWER
    chunks = [event["artifactUpdate"] for event in seen["chunked"] if "artifactUpdate" in event]
    assert [one["artifact"]["parts"][0]["text"] for one in chunks] == ["chunk-1 ", "chunk-2"]
    assert [one.get("append", False) for one in chunks] == [False, True]
    assert [one.get("lastChunk", False) for one in chunks] == [False, True]
    assert (len(set(seen["listed"])), seen["total"], seen["pages"]) == (6, 6, 3)
    assert {task["id"] for task in (answered, streamed[0]["task"], seen["read"])} <= set(seen["listed"])


def _a_stream_is_taken_up_again(seen: Json) -> None:
    assert seen["snapshot"]["task"]["id"] == seen["canceled"]["id"]
    assert state(seen["canceled"]) == "CANCELED"
    assert state(seen["rest"][-1]["statusUpdate"]) == "CANCELED"
    last = seqs(seen["rest"])[-1]
    assert seqs(seen["resumed"]) == list(range(seen["seen"] + 1, last + 1))


def _refusals_are_the_sdk_s_own_errors(seen: Json) -> None:
    assert seen["again"]["name"].endswith("TaskNotCancelableError")
    assert seen["unknown"]["name"].endswith("TaskNotFoundError")
    assert seen["ended"]["name"].endswith("UnsupportedOperationError")
    if "stranger" in seen:
        assert "A valid bearer token is required." in seen["stranger"]["message"]


def _an_asking_task_is_answered(seen: Json) -> None:
    asking = seen["asking"]
    assert state(asking) == "INPUT_REQUIRED"
    assert asking["status"]["message"]["metadata"][HITL_EXTENSION]["type"] == "ask_user_request"
    assert seen["told"]["id"] == seen["read"]["id"] == asking["id"]
    assert (state(seen["told"]), state(seen["read"])) == ("COMPLETED", "COMPLETED")
    assert state(seen["polled"]) in {"SUBMITTED", "WORKING"}
    assert (seen["made"]["id"], seen["configs"]) == ("kept", ["kept"])
    assert seen["got"] == seen["made"]
    assert "opaque" not in orjson.dumps(seen["made"]).decode()
    assert seen["made"]["authentication"] == {"scheme": "Bearer"}


async def _the_webhook_is_told(agent: AgentStage, task_id: str) -> None:
    def own() -> list[Received]:
        # the configuration that was deleted may have been told something before, under its own token
        mine = [one for one in agent.hook.received if one.headers["x-a2a-notification-token"] == "opaque"]
        return [one for one in mine if one.event_id.startswith(f"{task_id}/")]

    await agent.hook.when(lambda: len(own()) >= 3)
    # how the task stood when the webhook was made, then every event
    assert [one.seq for one in own()] == [2, 3, 4]
    assert state(own()[-1].payload["statusUpdate"]) == "COMPLETED"
    for one in own():
        assert one.headers["authorization"] == "Bearer secret"
        await verified(one, base=agent.base, audience=agent.hook.url.removesuffix("/hook"))

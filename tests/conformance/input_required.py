"""Fixture tools that ask back: a result of 2026-07-28 that names the input it lacks, and the same call again with it.

Above: `fixtures`. The state between two rounds is plain here; the SDK's boundary seals it on the wire (`fixtures`).
"""

from __future__ import annotations

import json
from typing import Any

import mcp_types as types

from tests.conformance.tools import Context, ToolFixture, ToolResult, text_result

__all__ = ["ask", "input_required_fixtures"]

STATE = "first round done"


def ask(message: str, name: str, kind: str = "string") -> types.ElicitRequest:
    """Return a question with one field."""
    schema: dict[str, Any] = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def input_required_fixtures() -> list[ToolFixture]:
    """Return the tools that ask back."""
    runs = {
        "elicitation": _elicitation,
        "sampling": _sampling,
        "list_roots": _list_roots,
        "request_state": _request_state,
        "multiple_inputs": _multiple_inputs,
        "multi_round": _multi_round,
        "tampered_state": _request_state,
        "capabilities": _capabilities,
    }
    tools = [
        ToolFixture(name=f"test_input_required_result_{name}", description="Asks back before it answers.", run=run)
        for name, run in runs.items()
    ]
    return [*tools, ToolFixture(name="test_streaming_elicitation", description="Asks the user.", run=_elicitation)]


def _sample(text: str) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=text))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=50))


def _answered(params: types.CallToolRequestParams, key: str, field: str) -> Any:
    """Return one field of an accepted answer; None where there is none."""
    answer = (params.input_responses or {}).get(key)
    if isinstance(answer, types.ElicitResult) and answer.action == "accept":
        return (answer.content or {}).get(field)
    return None


async def _elicitation(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    name = _answered(params, "user_name", "name")
    if name is not None:
        return text_result(f"Hello, {name}!")
    return types.InputRequiredResult(input_requests={"user_name": ask("What is your name?", "name")})


async def _sampling(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    answer = (params.input_responses or {}).get("capital_question")
    if isinstance(answer, types.CreateMessageResult):
        return text_result(f"The model said: {answer.content}")
    return types.InputRequiredResult(input_requests={"capital_question": _sample("What is the capital of France?")})


async def _list_roots(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    answer = (params.input_responses or {}).get("client_roots")
    if isinstance(answer, types.ListRootsResult):
        return text_result(f"The client has {len(answer.roots)} roots")
    return types.InputRequiredResult(input_requests={"client_roots": types.ListRootsRequest()})


async def _request_state(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    # whoever alters the state never gets here: the boundary refuses it
    if params.request_state == STATE and _answered(params, "confirm", "ok") is not None:
        return text_result("state-ok")
    return types.InputRequiredResult(
        input_requests={"confirm": ask("Please confirm", "ok", "boolean")}, request_state=STATE
    )


async def _multiple_inputs(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    wanted: dict[str, types.InputRequest] = {
        "user_name": ask("What is your name?", "name"),
        "greeting": _sample("Generate a greeting"),
        "client_roots": types.ListRootsRequest(),
    }
    if wanted.keys() <= (params.input_responses or {}).keys():
        return text_result("all there")
    return types.InputRequiredResult(input_requests=wanted, request_state=STATE)


async def _multi_round(_: Context, params: types.CallToolRequestParams) -> ToolResult:
    state: dict[str, Any] = json.loads(params.request_state or "{}")
    name = state.get("name") or _answered(params, "step1", "name")
    color = _answered(params, "step2", "color")
    if name is None:
        return types.InputRequiredResult(
            input_requests={"step1": ask("Step 1: What is your name?", "name")}, request_state=json.dumps({"round": 1})
        )
    if color is None:
        return types.InputRequiredResult(
            input_requests={"step2": ask("Step 2: What is your favorite color?", "color")},
            request_state=json.dumps({"round": 2, "name": name}),
        )
    return text_result(f"{name} likes {color}")


async def _capabilities(ctx: Context, _: types.CallToolRequestParams) -> ToolResult:
    declared = ctx.session.client_capabilities
    requests: dict[str, types.InputRequest] = {}
    if declared is not None and declared.sampling is not None:
        requests["sample"] = _sample("Say hello")
    if declared is not None and declared.elicitation is not None:
        requests["ask"] = ask("What is your name?", "name")
    return types.InputRequiredResult(input_requests=requests, request_state=STATE)

"""The fixture tools that the suite's scenarios call by name: each kind of content, progress, logs, failures.

Above: `fixtures`. What a scenario expects stands in the suite itself; none of these exists outside these tests.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import mcp_types as types
from mcp.server.connection import allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ServerEvent, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

__all__ = ["PIXEL", "Context", "ToolFixture", "ToolResult", "text_result", "tool_fixtures"]

Context = ServerRequestContext[Any, Any]
ToolResult = types.CallToolResult | types.InputRequiredResult
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
STEP_S = 0.05
"""Between two notifications of one call: the scenarios want to see them arrive one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFixture:
    """A tool: how it is listed, and what it answers."""

    name: str
    description: str
    run: Callable[[Context, types.CallToolRequestParams], Awaitable[ToolResult]]
    input_schema: Mapping[str, Any] = field(default_factory=lambda: NO_ARGUMENTS)

    @property
    def declaration(self) -> types.Tool:
        """As tools/list shows it."""
        return types.Tool(name=self.name, description=self.description, input_schema=dict(self.input_schema))


def text_result(text: str) -> types.CallToolResult:
    """Return a result of one text."""
    return types.CallToolResult(content=[types.TextContent(text=text)])


def _png() -> str:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    row = zlib.compress(b"\0\xff\0\0")
    image = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", row) + part(b"IEND", b"")
    return base64.b64encode(image).decode()


def _wav() -> str:
    samples = bytes([128] * 8)
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return base64.b64encode(b"RIFF" + struct.pack("<I", len(chunks)) + chunks).decode()


PIXEL = _png()
"""One red pixel."""
JSON_SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
"""What json-schema-2020-12 looks for in a listed schema, keyword by keyword."""


def tool_fixtures(bus: InMemorySubscriptionBus) -> list[ToolFixture]:
    """Return the tools; what they announce goes onto `bus`."""
    return [*_contents(), *_notifying(bus), *_asking_live(), *_schemas()]


def _contents() -> list[ToolFixture]:
    image = types.ImageContent(data=PIXEL, mime_type="image/png")

    def embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
        return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=mime_type, text=text))

    answers: dict[str, types.CallToolResult] = {
        "test_simple_text": text_result("This is a simple text response for testing."),
        "test_image_content": types.CallToolResult(content=[image]),
        "test_audio_content": types.CallToolResult(content=[types.AudioContent(data=_wav(), mime_type="audio/wav")]),
        "test_embedded_resource": types.CallToolResult(
            content=[embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
        ),
        "test_multiple_content_types": types.CallToolResult(
            content=[
                types.TextContent(text="Multiple content types test:"),
                image,
                embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
            ]
        ),
        "test_error_handling": types.CallToolResult(
            content=[types.TextContent(text="This tool intentionally returns an error for testing")], is_error=True
        ),
    }

    def fixed(result: types.CallToolResult) -> Callable[[Context, types.CallToolRequestParams], Awaitable[ToolResult]]:
        async def run(_: Context, __: types.CallToolRequestParams) -> ToolResult:
            return result

        return run

    return [
        ToolFixture(name=name, description="Answers one fixed result.", run=fixed(result))
        for name, result in answers.items()
    ]


def _notifying(bus: InMemorySubscriptionBus) -> list[ToolFixture]:
    async def progress(ctx: Context, _: types.CallToolRequestParams) -> ToolResult:
        for done in (0, 50, 100):
            await ctx.session.report_progress(done, 100, f"{done} of 100")
            await anyio.sleep(STEP_S)
        return text_result("done")

    async def logging(ctx: Context, _: types.CallToolRequestParams) -> ToolResult:
        for what in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await _log(ctx, what)
            await anyio.sleep(STEP_S)
        return text_result("logged")

    def announcing(event: ServerEvent) -> Callable[[Context, types.CallToolRequestParams], Awaitable[ToolResult]]:
        async def announce(_: Context, __: types.CallToolRequestParams) -> ToolResult:
            await bus.publish(event)
            return text_result("announced")

        return announce

    return [
        ToolFixture(name="test_tool_with_progress", description="Reports 0, 50 and 100 of 100.", run=progress),
        ToolFixture(name="test_tool_with_logging", description="Logs three lines.", run=logging),
        ToolFixture(name="test_logging_tool", description="Logs three lines to a client that asked.", run=logging),
        ToolFixture(
            name="test_trigger_tool_change",
            description="Announces a changed list of tools.",
            run=announcing(ToolsListChanged()),
        ),
        ToolFixture(
            name="test_trigger_prompt_change",
            description="Announces a changed list of prompts.",
            run=announcing(PromptsListChanged()),
        ),
    ]


async def _log(ctx: Context, what: str) -> None:
    # from 2026-07-28 on only a request that asked for this level gets it
    if "info" in allowed_log_levels(ctx.protocol_version, ctx.meta):
        await ctx.session.send_notification(
            types.LoggingMessageNotification(params=types.LoggingMessageNotificationParams(level="info", data=what)),
            related_request_id=ctx.request_id,
        )


def _asking_live() -> list[ToolFixture]:
    """Tools that ask the client while a call of 2025-11-25 runs, which a stateless server has no way to deliver."""

    async def sample(ctx: Context, params: types.CallToolRequestParams) -> ToolResult:
        text = types.TextContent(text=str((params.arguments or {}).get("prompt", "")))
        request = types.CreateMessageRequest(
            params=types.CreateMessageRequestParams(
                messages=[types.SamplingMessage(role="user", content=text)], max_tokens=100
            )
        )
        answer = await ctx.session.send_request(request, types.CreateMessageResult, metadata=_within(ctx))
        return text_result(f"LLM response: {answer.content}")

    def eliciting(schema: dict[str, Any]) -> Callable[[Context, types.CallToolRequestParams], Awaitable[ToolResult]]:
        async def elicit(ctx: Context, params: types.CallToolRequestParams) -> ToolResult:
            message = str((params.arguments or {}).get("message", "Please answer"))
            request = types.ElicitRequest(
                params=types.ElicitRequestFormParams(message=message, requested_schema=schema)
            )
            answer = await ctx.session.send_request(request, types.ElicitResult, metadata=_within(ctx))
            return text_result(f"User response: action={answer.action}, content={answer.content}")

        return elicit

    async def needs_sampling(ctx: Context, _: types.CallToolRequestParams) -> ToolResult:
        declared = ctx.session.client_capabilities
        if declared is None or declared.sampling is None:
            raise MCPError(
                types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                "this tool needs a client that can sample",
                {"requiredCapabilities": {"sampling": {}}},
            )
        return text_result("the client can sample")

    answer = {"type": "object", "properties": {"response": {"type": "string"}}, "required": ["response"]}
    wants = {
        "test_elicitation": answer,
        "test_elicitation_sep1034_defaults": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "default": "John Doe"},
                "age": {"type": "integer", "default": 30},
                "score": {"type": "number", "default": 95.5},
                "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                "verified": {"type": "boolean", "default": True},
            },
        },
        "test_elicitation_sep1330_enums": {
            "type": "object",
            "properties": {"untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]}},
        },
    }
    prompt = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
    message = {"type": "object", "properties": {"message": {"type": "string"}}}
    return [
        ToolFixture(name="test_sampling", description="Asks the client's model.", run=sample, input_schema=prompt),
        ToolFixture(name="test_missing_capability", description="Needs a client that can sample.", run=needs_sampling),
        *(
            ToolFixture(name=name, description="Asks the user.", run=eliciting(schema), input_schema=message)
            for name, schema in wants.items()
        ),
    ]


def _within(ctx: Context) -> ServerMessageMetadata:
    return ServerMessageMetadata(related_request_id=ctx.request_id)


def _schemas() -> list[ToolFixture]:
    async def region(_: Context, params: types.CallToolRequestParams) -> ToolResult:
        return text_result(f"region={(params.arguments or {}).get('region')}")

    async def nothing(_: Context, __: types.CallToolRequestParams) -> ToolResult:
        return text_result("nothing")

    mirrored = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    return [
        ToolFixture(
            name="test_x_mcp_header",
            description="Takes an argument that a header repeats.",
            run=region,
            input_schema=mirrored,
        ),
        ToolFixture(
            name="json_schema_2020_12_tool",
            description="Is listed with many keywords of JSON Schema 2020-12.",
            run=nothing,
            input_schema=JSON_SCHEMA_2020_12,
        ),
    ]

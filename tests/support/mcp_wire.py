"""The MCP endpoint without a client's library: requests of either revision as raw messages, and their answers.

Above: tests of what no library would send, and of what it would hide. Below: httpx2's response alone.
"""

from __future__ import annotations

from typing import Any

import httpx2
import orjson

__all__ = ["LEGACY", "MODERN", "answered", "events", "raw_request"]

LEGACY, MODERN = "2025-11-25", "2026-07-28"


def raw_request(
    method: str, params: dict[str, Any] | None = None, *, revision: str = LEGACY, **members: Any
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers as a client of `revision` sends them, but for its token.

    `members` replace members of the message; None leaves one out. Whatever else is wrong must be in `params`.
    """
    params = dict(params or {})
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": revision,
    }
    if revision >= MODERN:
        headers["mcp-method"] = method
        name = params.get("name") or params.get("uri")
        headers |= {"mcp-name": str(name)} if name else {}
        own = {
            "io.modelcontextprotocol/protocolVersion": revision,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params["_meta"] = {**own, **params.get("_meta", {})}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params, **members}
    return orjson.dumps({key: value for key, value in message.items() if value is not None}), headers


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """Return the messages of an event stream."""
    lines = response.text.splitlines()
    return [orjson.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:") and line[5:].strip()]


def answered(response: httpx2.Response) -> dict[str, Any]:
    """Return the answer, in whichever of its two forms it came."""
    streamed = response.headers["content-type"].startswith("text/event-stream")
    return events(response)[-1] if streamed else response.json()

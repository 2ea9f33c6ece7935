"""A load generator for the MCP endpoint, a process of its own: `python -m tests.bench.client < job.json`.

It speaks just enough HTTP/1.1 and JSON-RPC (stateless, the 2026-07-28 wire unless the job names another) to keep N
connections busy, since every CPU second that it takes is one that the server on the same cores does not get: about
0.1 ms a request, where an HTTP library takes one. Requests are encoded once, before the clock runs. Whoever is at a
limit comes back when told to; nothing else is retried, and what is not a good answer is counted as failed.

The job: {"host", "port", "path", "token", "tool", "calls": [arguments, ...], "concurrency", "seconds", "lead_s",
"seed", "wire" (2026-07-28 unless given), "tokens" (dealt out to the connections, instead of "token"),
"patient" (false: who is at a limit tries again at once)}: what began within the first `lead_s` is not counted.
The result, on standard output: {"latencies_ms": [...], "seconds", "cpu_s", "failed", "limited", "first_failure",
"hits"}, the last being the mean number of hits of an answer.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httptools
import orjson

RATE_LIMITED = 42900
VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bulkhead-bench", "version": "1"},
}
REQUEST_BOUND_S = 60.0
_MAX_SHOWN = 500


@dataclass(slots=True, kw_only=True)
class _Tally:
    latencies_ms: list[float] = field(default_factory=list[float])
    counted_from: float
    failed: int = 0
    limited: int = 0
    first_failure: str = ""
    hits: int = 0


class _LimitedError(Exception):
    """The server said when to come back."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


class _Answer:
    """Takes one response out of the bytes of a connection; httptools calls the `on_` methods."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.done = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def _encoded(job: Mapping[str, Any], token: str, arguments: Mapping[str, Any], number: int) -> bytes:
    wire = job.get("wire", VERSION)
    params = {"name": job["tool"], "arguments": arguments}
    routing = ""
    if wire == VERSION:
        params["_meta"] = META
        routing = f"mcp-method: tools/call\r\nmcp-name: {job['tool']}\r\n"
    body = orjson.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    head = (
        f"POST {job['path']} HTTP/1.1\r\nhost: {job['host']}:{job['port']}\r\nauthorization: Bearer {token}\r\n"
        "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        f"mcp-protocol-version: {wire}\r\n{routing}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _ask(stream: anyio.abc.ByteStream, request: bytes) -> tuple[int, bytes]:
    answer = _Answer()
    await stream.send(request)
    while not answer.done:
        answer.parser.feed_data(await stream.receive(262_144))
    return answer.parser.get_status_code(), bytes(answer.body)


def _hits(status: int, body: bytes) -> int:
    """Return the number of hits of a good answer.

    Raises:
        _LimitedError: A rate limit refused.
        ValueError: It is none.
    """
    if status != 200:
        raise ValueError(f"HTTP {status}: {body[:_MAX_SHOWN]!r}")
    text = body if body.startswith(b"{") else body.partition(b"data: ")[2].partition(b"\n")[0]
    answer = orjson.loads(text)
    if answer.get("error", {}).get("code") == RATE_LIMITED:
        raise _LimitedError(answer["error"]["data"]["retryAfterMs"] / 1000)
    result = answer.get("result")
    if result is None or result.get("isError"):
        raise ValueError(repr(body[:_MAX_SHOWN]))
    content = result["structuredContent"]
    if content.get("degraded"):
        raise ValueError(f"degraded: {content['degraded']}")
    return len(content.get("hits", ()))


async def _keep_asking(  # start_soon passes positions only
    job: Mapping[str, Any], requests: Sequence[bytes], seed: int, until: float, tally: _Tally
) -> None:
    draw = random.Random(seed)
    stream: anyio.abc.ByteStream | None = None
    try:
        while (began := time.perf_counter()) < until:
            if stream is None:
                stream = await anyio.connect_tcp(job["host"], job["port"])
            try:
                with anyio.fail_after(REQUEST_BOUND_S):
                    status, body = await _ask(stream, draw.choice(requests))
                took_ms = (time.perf_counter() - began) * 1000
                hits = _hits(status, body)
                if began >= tally.counted_from:
                    tally.latencies_ms.append(took_ms)
                    tally.hits += hits
            except _LimitedError as limited:
                tally.limited += 1
                if job.get("patient", True):
                    await anyio.sleep(max(0.0, min(limited.wait_s, until - time.perf_counter())))
            except (ValueError, KeyError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                tally.failed += 1
                tally.first_failure = tally.first_failure or f"{type(exc).__name__}: {exc}"
                await stream.aclose()
                stream = None
    finally:
        if stream is not None:
            await stream.aclose()


async def _drive(job: Mapping[str, Any]) -> dict[str, Any]:
    requests = [
        [_encoded(job, token, arguments, number) for number, arguments in enumerate(job["calls"])]
        for token in job.get("tokens") or [job["token"]]
    ]
    cpu = time.process_time()
    began = time.perf_counter()
    tally = _Tally(counted_from=began + job["lead_s"])
    until = tally.counted_from + job["seconds"]
    async with anyio.create_task_group() as group:
        for number in range(job["concurrency"]):
            own = requests[number % len(requests)]
            group.start_soon(_keep_asking, job, own, job["seed"] * 1000 + number, until, tally)
    return {
        "latencies_ms": tally.latencies_ms,
        "seconds": time.perf_counter() - tally.counted_from,
        "cpu_s": time.process_time() - cpu,
        "failed": tally.failed,
        "limited": tally.limited,
        "first_failure": tally.first_failure,
        "hits": tally.hits / max(1, len(tally.latencies_ms)),
    }


def main() -> None:
    """Read the job, run it, write the result."""
    result = anyio.run(_drive, json.load(sys.stdin), backend_options={"use_uvloop": True})
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()

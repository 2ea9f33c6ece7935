"""One physical call to a model server over the OpenAI chat API, streamed. It is made once: who asks again is above.

Above: `gateway`, `bench`. Below: an httpx client, passed in; `sse` and `chunks`, which read what comes
back; `failures`.

A call that fails says what it may have cost. `NotBilled`: no work was done for it, and it may be made again. In every
other case the server had the request, and nobody knows how far it came: `MaybeBilled`. So too, without that type, where
the caller is cancelled or `emit` raises: both go through unchanged, and close the connection, which ends the server's
work.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, cast

import anyio
import httpx

from rag.llm.catalogue import Offer
from rag.llm.chunks import Finish, read_chunk
from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.ports import Emit
from rag.llm.request import ChatRequest, Limits, Reply, TokenUsage
from rag.llm.sse import Done, EventStream, Malformed
from rag.telemetry import carrier

__all__ = ["MaybeBilled", "NotBilled", "headers", "stream"]

CLOSE_S = 1.0
LINGER_S = 0.25
"""After the last event a server has this long to end the body: a connection read to its end is used again."""
MAX_RETRY_AFTER_S = 3600.0
BODY_BYTES = 1 << 20
"""Of a whole answer, and for each token that was asked for `EVENT_BYTES` more: its event is 200 to 600 bytes."""
EVENT_BYTES = 4096
_UNUSABLE = "the model server's address or key cannot be used"
_AGAIN = frozenset({408, 425, 429, 503})
"""Refusals that another time, or another server, may not give."""
_OF_THE_REQUEST = frozenset({400, 413, 422, 429})
"""Refusals that tell nothing against the server: what is asked cannot be done there, or it says when it can."""


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """How far the call has come."""

    emit: Emit
    limits: Limits
    started: float
    pieces: list[str] = field(default_factory=list[str])
    chars: int = 0
    first_token_s: float | None = None
    emitting_s: float = 0.0
    """The reader's time, which is not the server's fault."""
    finish: Finish | None = None
    usage: TokenUsage | None = None
    raw: dict[str, Any] = field(default_factory=dict[str, Any])
    silence: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Ends the wait for what the server says next."""

    def await_piece(self, seconds: float) -> None:
        self.silence.deadline = anyio.current_time() + seconds

    def reply(self) -> Reply:
        total_s = anyio.current_time() - self.started
        return Reply(
            text="".join(self.pieces),
            finish=self.finish or "other",
            usage=self.usage,
            first_token_s=total_s if self.first_token_s is None else self.first_token_s,
            total_s=total_s,
            raw=self.raw,
        )

    def broken(self, why: str, *, at_fault: bool = True, status: int | None = None) -> MaybeBilled:
        return MaybeBilled(why, emitted=bool(self.pieces), usage=self.usage, at_fault=at_fault, status=status)


async def stream(
    client: httpx.AsyncClient,
    offer: Offer,
    request: ChatRequest,
    emit: Emit,
    *,
    cache_salt: str | None,
    limits: Limits,
) -> Reply:
    """Make the call, and await `emit` with each piece of text as it comes; joined, the pieces are `Reply.text`.

    Args:
        client: Its own time-outs and redirects are not used. It may serve many endpoints at a time.
        offer: Which model, where; an endpoint of kind `vllm` is sent `cache_salt`.
        request: What is asked; all of it is sent each time, `max_tokens` as well.
        emit: The model's silence is bounded, not the reader's: the time it takes counts for `limits.total_s` only.
        cache_salt: Keeps one tenant's prompt prefixes apart from another's in the server's cache.
        limits: Bounds of this one call.

    Raises:
        NotBilled: No work was done.
        MaybeBilled: Anything else that went wrong; the text is not whole. Once the end of the text was told, what
            goes wrong afterwards is no failure: the reply then may lack its usage.
    """
    attempt = _Attempt(emit=emit, limits=limits, started=anyio.current_time())
    prepared = _prepare(client, offer, _body(offer, request, cache_salt), attempt)
    events = EventStream(max_bytes=BODY_BYTES + EVENT_BYTES * request.max_tokens)
    with anyio.move_on_after(limits.total_s):
        return await _call(client, prepared, events, attempt)
    if attempt.finish is not None:
        return attempt.reply()
    raise attempt.broken(
        f"the model server did not finish in {limits.total_s:g} seconds",
        at_fault=attempt.emitting_s < limits.total_s / 2,
    )


def _prepare(client: httpx.AsyncClient, offer: Offer, body: Mapping[str, Any], attempt: _Attempt) -> httpx.Request:
    connect_s = attempt.limits.connect_s

    async def sent(event: str, _: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            attempt.await_piece(attempt.limits.first_token_s)

    # A place in the pool, TCP and TLS are waited for in turn, and a transport need not say when it sends.
    attempt.await_piece(3 * connect_s + attempt.limits.first_token_s)
    try:
        return client.build_request(
            "POST",
            offer.endpoint.base_url.rstrip("/") + "/chat/completions",
            json=body,
            headers=headers(offer),
            timeout=httpx.Timeout(None, connect=connect_s, pool=connect_s),
            extensions={"trace": sent},
        )
    except httpx.InvalidURL as exc:
        raise NotBilled(_UNUSABLE, retryable=False) from exc
    except UnicodeEncodeError:
        # Half a surrogate pair, as JSON can bring it. The cause is cut off: it holds the whole text.
        raise NotBilled("the prompt is not text that can be sent", retryable=False, at_fault=False) from None


async def _call(client: httpx.AsyncClient, prepared: httpx.Request, events: EventStream, attempt: _Attempt) -> Reply:
    with attempt.silence:
        response = await _send(client, prepared, attempt)
        try:
            _check(response, attempt)
            # httpx writes async generators, and calls them iterators
            async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as parts:
                await _read(parts, events, attempt)
        finally:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await response.aclose()
    if attempt.finish is None:
        raise attempt.broken("the model server fell silent")
    return attempt.reply()


async def _send(client: httpx.AsyncClient, prepared: httpx.Request, attempt: _Attempt) -> httpx.Response:
    """Send the request and return when its status is here."""
    try:
        return await client.send(prepared, stream=True, follow_redirects=False)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as exc:
        raise NotBilled("the model server is not reachable", retryable=True) from exc
    except httpx.PoolTimeout as exc:
        raise NotBilled("no connection is free", retryable=True, at_fault=False) from exc
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as exc:
        raise NotBilled(_UNUSABLE, retryable=False) from exc
    except httpx.HTTPError as exc:
        raise attempt.broken(f"the model server broke off ({type(exc).__name__})") from exc


def _check(response: httpx.Response, attempt: _Attempt) -> None:
    status = response.status_code
    if status == 200:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise attempt.broken("the model server packed its answer, which it was asked not to")
        return
    if status < 300 or (status >= 500 and status != 503):
        raise attempt.broken(f"the model server failed (HTTP {status})", status=status)
    raise NotBilled(
        f"the model server refused the request (HTTP {status})",
        retryable=status in _AGAIN,
        retry_after_s=_retry_after(response.headers),
        at_fault=status not in _OF_THE_REQUEST,
        status=status,
    )


async def _read(parts: AsyncGenerator[bytes], events: EventStream, attempt: _Attempt) -> None:
    """Read to the end of the text, and of the body if that follows at once."""
    try:
        while (part := await _next(parts)) is not None:
            for event in events.feed(part):
                if isinstance(event, Done):
                    await _end(parts, attempt)
                    return
                await _take(event, attempt)
    except Malformed as exc:
        # Where the text's end was told already, only its usage may be missing.
        if attempt.finish is None:
            raise attempt.broken(f"the model server broke off ({exc})") from exc
    if attempt.finish is None:
        raise attempt.broken("the model server broke off (the body ended)")


async def _next(parts: AsyncGenerator[bytes]) -> bytes | None:
    try:
        return await anext(parts)
    except StopAsyncIteration:
        return None
    except (httpx.HTTPError, httpx.StreamError) as exc:
        raise Malformed(type(exc).__name__) from exc


async def _take(event: Mapping[str, Any], attempt: _Attempt) -> None:
    chunk = read_chunk(event, finished=attempt.finish is not None, text_before=bool(attempt.pieces))
    if chunk.usage_told:
        attempt.usage = _larger(attempt.usage, chunk.usage)
    elif chunk.text or chunk.thinking:
        attempt.usage = None  # a count that more text follows was not of the whole call
    for name, value in chunk.raw.items():
        attempt.raw.setdefault(name, value)
    if chunk.text and attempt.finish is None:
        await _emit(chunk.text, attempt)
    if chunk.text or chunk.thinking or chunk.finish is not None:
        attempt.await_piece(attempt.limits.between_tokens_s)
    # Only now: an end is told when the reader has everything.
    attempt.finish = attempt.finish or chunk.finish


def _larger(before: TokenUsage | None, now: TokenUsage | None) -> TokenUsage | None:
    """Return what is billed where a count follows another: nobody knows if one of them cannot be, else the larger."""
    if before is None or now is None:
        return now
    prompt, completion = max(before.prompt, now.prompt), max(before.completion, now.completion)
    return TokenUsage(prompt=prompt, cached=min(before.cached, now.cached), completion=completion)


async def _emit(text: str, attempt: _Attempt) -> None:
    now = anyio.current_time()
    attempt.chars += len(text)
    if attempt.chars > attempt.limits.max_chars:
        raise attempt.broken("the model server does not stop writing")
    if attempt.first_token_s is None:
        attempt.first_token_s = now - attempt.started
    attempt.pieces.append(text)
    attempt.silence.deadline = math.inf
    try:
        await attempt.emit(text)
    finally:
        attempt.emitting_s += anyio.current_time() - now


async def _end(parts: AsyncGenerator[bytes], attempt: _Attempt) -> None:
    """Take the server at its word that this is the end, also where it never gave a reason."""
    if not attempt.pieces and attempt.finish is None:
        raise Malformed("nothing was said")
    attempt.finish = attempt.finish or "other"
    with anyio.move_on_after(LINGER_S):
        try:
            async for _ in parts:
                return  # more, after the end: this connection is not used again
        except (httpx.HTTPError, httpx.StreamError):
            return


def _body(offer: Offer, request: ChatRequest, cache_salt: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": offer.served_name,
        "messages": request.messages(),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.schema is not None:
        form = {"name": "answer", "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if cache_salt is not None and offer.endpoint.kind == "vllm":
        body["cache_salt"] = cache_salt
    return body


def headers(offer: Offer) -> dict[str, str]:
    """Return the headers of a request to the offer's endpoint: its key, and the trace (W3C) that the call belongs to.

    Baggage is left out: the server may be somebody else's.
    """
    sent = {name: value for name, value in carrier().items() if name in {"traceparent", "tracestate"}}
    # Packed bytes have no bound before they are unpacked.
    sent["Accept-Encoding"] = "identity"
    if offer.endpoint.api_key:
        sent["Authorization"] = f"Bearer {offer.endpoint.api_key}"
    return sent


def _retry_after(told: httpx.Headers) -> float | None:
    """Return the seconds of `Retry-After`, which may be a number or a date; the latter by the server's own clock."""
    value = told.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until, now = parsedate_to_datetime(value), parsedate_to_datetime(told.get("date", ""))
            seconds = (until - now).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None

"""HTTP as both servers speak it: uvicorn's protocol, with a bound on what a peer can hold of the process's memory.

Above: the two faces' `__main__`. Below: settings; uvicorn with httptools, which as it comes waits for ever for a first
request, takes headers of any length and bodies at any pace, and keeps an answer that nobody fetches.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rag.settings import Settings

__all__ = ["BoundedHttp", "http_config", "settle_memory"]

KEEP_ALIVE_S = 75
"""Longer than a load balancer's usual minute, so that it is the one to close an idle connection."""


def http_config(
    app: Any, settings: Settings, *, host: str, port: int, lifespan: Literal["on", "off"], shutdown_s: int
) -> uvicorn.Config:
    """Return how uvicorn serves one of our ASGI applications.

    Args:
        app: The application.
        settings: Names the certificate, where there is one.
        host: Where to listen.
        port: Where to listen.
        lifespan: Whether the application is told of its beginning and end.
        shutdown_s: Requests in flight may take this many seconds to end once the server stops.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="none",
        http=BoundedHttp,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        # nothing depends on the peer's address or on the scheme it came by
        proxy_headers=False,
        timeout_graceful_shutdown=shutdown_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def settle_memory() -> None:
    """Tell the collector that what a process has loaded by now stays: it need not look through it again and again."""
    gc.collect()
    gc.freeze()


class BoundedHttp(HttpToolsProtocol):
    """One connection: requests come within a time, their heads within a size, and answers are fetched within a time."""

    head_s = 30.0
    """From the connection, or from the first byte after an answer, to the end of a request's head."""
    silence_s = 15.0
    """So long not one byte of a body may come that the application waits for."""
    body_s = 120.0
    """For a whole body: 16 MiB at 1.1 Mbit/s."""
    fetch_s = 60.0
    """For as much of an answer as the operating system does not take, about a mebibyte at most."""
    max_head_bytes = 64 * 1024
    """Of a head, and of whatever else on the wire is neither head nor body: chunk extensions, trailers."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """As uvicorn makes one for each connection."""
        super().__init__(*arguments, **keywords)
        self._beside_bytes = 0
        self._whole = False
        self._until = 0.0
        self._arrival: asyncio.TimerHandle | None = None
        self._fetch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for the first head."""
        super().connection_made(transport)
        self._expect_within(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._expect_nothing()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless too much came that is no body."""
        self._beside_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        at_work = self._at_work()
        if self._beside_bytes > self.max_head_bytes:
            if at_work:
                self.transport.abort()
            else:
                self.send_400_response("The head of the request is too large.")
        elif at_work and not self._whole:
            self._expect_within(min(self.silence_s, self._until - self.loop.time()))
        elif not at_work and self._arrival is None:
            # uvicorn stops its own timer at the first byte, be it the rest of a body that was refused
            self._expect_within(self.head_s)

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._beside_bytes = 0
        self._whole = False
        self._until = self.loop.time() + self.body_s
        self._expect_nothing()
        super().on_headers_complete()
        # what is still to come are trailers, which must not join the headers that the application was given
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Count from here on."""
        self._beside_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request ends."""
        self._beside_bytes = 0
        self._whole = True
        self._expect_nothing()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The peer does not fetch what it asked for: not for ever."""
        super().pause_writing()
        if self._fetch is None:
            self._fetch = self.loop.call_later(self.fetch_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        if self._fetch is not None:
            self._fetch.cancel()
            self._fetch = None
        super().resume_writing()

    def _at_work(self) -> bool:
        # None before the first request, whatever the declaration says
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._arrival = self.loop.call_later(seconds, self._give_up)

    def _expect_nothing(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _give_up(self) -> None:
        if self.flow.read_paused:  # it is the application that does not read
            self._expect_within(self.silence_s)
            return
        if self._at_work() and not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

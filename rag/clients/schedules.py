"""A client of the A2A server's door for recurring tasks, for our own command line.

Above: the CLI. Below: one pool of connections. Answers are the door's JSON objects (docs/schedules.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from rag.errors import (
    BulkheadError,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

__all__ = ["ScheduleClient"]

TIMEOUT_S = 30.0
_STATUS: Mapping[int, type[BulkheadError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: InvalidInput,
    429: RateLimited,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleClient:
    """The schedules of the caller whom `token` proves."""

    http: httpx.AsyncClient
    """Stays the caller's to close; carries what TLS needs."""
    url: str
    """The server's base URL."""
    token: str

    async def ask(
        self,
        verb: str,
        name: str | None = None,
        act: str | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Send one request and return its answer.

        Args:
            verb: Of HTTP.
            name: Of a schedule; None: all of them.
            act: pause, resume or run.
            body: As JSON.
            key: Idempotency-Key.

        Raises:
            InvalidInput, NotFound, Conflict, Unauthenticated, Forbidden, RateLimited: With the server's reason.
            Unavailable: The server cannot be reached, or failed.
        """
        path = "/".join(["schedules", *(quote(part, safe="") for part in (name, act) if part is not None)])
        headers = {"authorization": f"Bearer {self.token}"}
        if key is not None:
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            headers["idempotency-key"] = f'"{escaped}"'
        try:
            answer = await self.http.request(
                verb, f"{self.url.rstrip('/')}/{path}", json=body, headers=headers, timeout=TIMEOUT_S
            )
        except httpx.TransportError as exc:
            raise Unavailable("the A2A server cannot be reached") from exc
        try:
            value = answer.json()
        except ValueError as exc:
            raise Unavailable("the A2A server answers with what is not JSON") from exc
        if answer.is_success:
            return value
        kind = _STATUS.get(answer.status_code, Unavailable)
        message = value.get("message") if isinstance(value, dict) else None
        raise kind(message if isinstance(message, str) else "the A2A server failed")

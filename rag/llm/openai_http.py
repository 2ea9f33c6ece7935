"""What the clients of embedding and reranking servers share: headers, one bounded retry rule, typed failures.

Above it: `openai_embeddings`, `rerank`. Below it: an httpx client that its owner opens and closes.
The key goes into a header and nowhere else: not into a message, not into a log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio
import httpx

from rag.errors import Unavailable

__all__ = ["ATTEMPTS", "BACKOFF_S", "Refused", "TryAgain", "headers", "raise_for_status", "with_retries"]

ATTEMPTS = 3
BACKOFF_S = 0.25
"""Before the second attempt; doubled before each further one."""

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


class TryAgain(Exception):
    """The server was not reached or answered that it cannot serve now. Never leaves `rag.llm`; nor does `Refused`."""


class Refused(Exception):
    """The server answered that it will never serve this request; `status` is its HTTP status."""

    def __init__(self, status: int) -> None:
        """Without the body of the response: it may repeat the request, and with it documents."""
        super().__init__(f"HTTP {status}")
        self.status = status


def headers(api_key: str | None) -> Mapping[str, str]:
    """Return the request headers."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def raise_for_status(response: httpx.Response) -> None:
    """Sort the status into three: fine, try again, refused.

    Raises:
        TryAgain: Overload or a fault of the server.
        Refused: Any other status that is not 200.
    """
    if response.status_code in _AGAIN:
        raise TryAgain(f"HTTP {response.status_code}")
    if response.status_code != 200:
        raise Refused(response.status_code)


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    attempts: int,
    backoff_s: float,
    failure: type[Unavailable],
    what: str,
) -> T:
    """Run `attempt` until it neither raises `TryAgain` nor fails to connect, at most `attempts` times.

    Raises:
        Unavailable: As `failure`: every attempt failed, or the server refused, or the connection broke.
    """
    for number in range(1, attempts + 1):
        try:
            return await attempt()
        except (TryAgain, httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError) as exc:
            if number == attempts:
                raise failure(f"{what} is not reachable or overloaded ({type(exc).__name__}); try again later") from exc
        except Refused as exc:
            raise failure(f"{what} refused the request (HTTP {exc.status})") from exc
        except httpx.HTTPError as exc:
            raise failure(f"{what} did not answer in time ({type(exc).__name__})") from exc
        await anyio.sleep(backoff_s * 2 ** (number - 1))
    raise failure(f"{what} was given no attempt")

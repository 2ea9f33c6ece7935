"""One notification: what it says about itself, how it is signed, how it is sent, and what became of it.

Above: `courier`. Below: `rag.outbound`, `rag.identity.outward`. docs/push.md tells receivers what they may rely on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import anyio
import httpx2

from rag.identity.outward import OutwardKey
from rag.outbound import AddressRefused
from rag.push.values import Recipient

__all__ = ["ID_HEADER", "SIGNATURE_HEADER", "TOKEN_HEADER", "Failed", "Notice", "RetryAfter", "headers_of", "send"]

MEDIA_TYPE = "application/a2a+json"
TOKEN_HEADER = "X-A2A-Notification-Token"  # noqa: S105  # the name of a header
ID_HEADER = "X-A2A-Notification-Id"
SIGNATURE_HEADER = "X-A2A-Notification-Signature"
SIGNATURE_LIFETIME_S = 300
GONE = 410
"""RFC 9110, section 15.5.11: the receiver says that it will not come back."""
MAX_RETRY_AFTER_S = 3600.0
"""As long as the longest pause of our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is told: one event of a task's log, or the task as it stood at one."""

    task_id: UUID
    seq: int
    body: bytes
    """A StreamResponse in JSON."""

    @property
    def event_id(self) -> str:
        """The same in each attempt."""
        return f"{self.task_id}/{self.seq}"


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The header of that name (RFC 9110, section 10.2.3): a number of seconds, or a date. What is neither counts for
    nothing.
    """

    text: str

    def seconds(self, now: float) -> float:
        """Return how long it asks to be left alone, from `now` (epoch seconds) on; MAX_RETRY_AFTER_S at most."""
        if self.text.isascii() and self.text.isdigit():
            wanted = float(self.text[:9])
        else:
            try:
                wanted = parsedate_to_datetime(self.text).timestamp() - now
            except (ValueError, OverflowError):
                return 0.0
        return min(max(wanted, 0.0), MAX_RETRY_AFTER_S)


class Failed(Exception):
    """It was not taken. `reason` is a word of ours, and holds nothing of the answer. Never leaves `rag.push`."""

    def __init__(self, reason: str, *, final: bool = False, after: RetryAfter | None = None) -> None:
        """`final`: it makes no sense to try again; `after`: when to try again, at the soonest."""
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.after = after


def headers_of(notice: Notice, to: Recipient, *, key: OutwardKey, issuer: str, now: float) -> dict[str, str]:
    """Return the headers of one attempt.

    The signature is in a header of its own and, where the receiver has named no credentials, also the bearer.
    """
    parts = urlsplit(to.url)
    signature = key.sign(
        {
            "iss": issuer,
            "aud": f"{parts.scheme}://{parts.netloc}",
            "iat": int(now),
            "exp": int(now) + SIGNATURE_LIFETIME_S,
            "jti": str(uuid4()),
            "taskId": str(notice.task_id),
            "seq": notice.seq,
            "configId": to.config_id,
            "request_body_sha256": hashlib.sha256(notice.body).hexdigest(),
        }
    )
    headers = {"content-type": MEDIA_TYPE, ID_HEADER: notice.event_id, SIGNATURE_HEADER: signature}
    given = to.credentials
    if given.token is not None:
        headers[TOKEN_HEADER] = given.token
    if given.scheme is not None:
        headers["authorization"] = f"{given.scheme} {given.credentials}" if given.credentials else given.scheme
    else:
        headers["authorization"] = f"Bearer {signature}"
    return headers


async def send(
    client: httpx2.AsyncClient, notice: Notice, to: Recipient, headers: dict[str, str], *, timeout_s: float
) -> None:
    """Deliver once. Any 2xx is an acknowledgement; what else the receiver says is not read.

    Args:
        client: Of `rag.outbound.pinned_client`: it follows no redirect and reaches no address of ours.
        notice: What to tell.
        to: Whom.
        headers: Of `headers_of`, for this attempt.
        timeout_s: For all of it.

    Raises:
        Failed: It was not acknowledged.
    """
    try:
        with anyio.fail_after(timeout_s):
            request = client.stream("POST", to.url, content=notice.body, headers=headers, timeout=timeout_s)
            async with request as response:
                status, after = response.status_code, response.headers.get("retry-after")
    except AddressRefused as exc:
        raise Failed("address refused") from exc
    except (TimeoutError, httpx2.TimeoutException) as exc:
        raise Failed("timeout") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as exc:
        raise Failed("unreachable") from exc
    if not 200 <= status < 300:
        raise Failed(f"HTTP {status}", final=status == GONE, after=RetryAfter(after.strip()) if after else None)

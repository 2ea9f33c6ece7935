"""What a webhook is, and how patiently it is told.

Above: `store`, `courier`, the A2A face. Below: identity. Credentials are in the values that need them and in no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from rag.errors import InvalidInput
from rag.identity.principal import Principal

__all__ = [
    "MAX_CONFIGS",
    "PACE",
    "PURPOSE",
    "ClaimedPush",
    "Credentials",
    "DeadPush",
    "NewWebhook",
    "Pace",
    "Recipient",
    "Webhook",
]

PURPOSE = "push"
"""Of the box that closes credentials."""
MAX_CONFIGS = 8
"""Webhooks that one caller may have on one task."""
MAX_ID_CHARS = 256
MAX_TOKEN_CHARS = 1024
MAX_CREDENTIALS_CHARS = 4096
_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
"""RFC 9110, section 11.1: an authentication scheme is a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What its receiver has given us, to be shown to it again."""

    token: str | None = field(default=None, repr=False)
    """X-A2A-Notification-Token."""
    scheme: str | None = None
    credentials: str | None = field(default=None, repr=False)
    """Authorization: `scheme` `credentials`."""

    def check(self) -> None:
        """Refuse what cannot stand in a header.

        Raises:
            InvalidInput: A value is too long, or holds more than visible ASCII characters.
        """
        for name, value, longest in (
            ("token", self.token, MAX_TOKEN_CHARS),
            ("authentication.credentials", self.credentials, MAX_CREDENTIALS_CHARS),
        ):
            if value is not None and not (len(value) <= longest and value.isascii() and value.isprintable()):
                raise InvalidInput(f"{name} is at most {longest} visible ASCII characters")
        if self.scheme is not None and not _SCHEME.fullmatch(self.scheme):
            raise InvalidInput("authentication.scheme is not the name of an HTTP authentication scheme")
        if self.credentials is not None and self.scheme is None:
            raise InvalidInput("authentication.credentials need an authentication.scheme")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    """A webhook that somebody asks for."""

    url: str
    config_id: str | None = None
    """The caller's name for it; None: one is made."""
    credentials: Credentials = Credentials()

    def check(self) -> None:
        """Refuse what cannot be kept. The URL is `rag.outbound`'s to judge.

        Raises:
            InvalidInput: The name has a bad length, or as `Credentials.check`.
        """
        if self.config_id is not None and not (0 < len(self.config_id) <= MAX_ID_CHARS and "\0" not in self.config_id):
            raise InvalidInput(f"the configuration's id is 1 to {MAX_ID_CHARS} characters")
        self.credentials.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook as its maker is shown it: credentials go in and never come out again."""

    push_id: UUID
    task_id: UUID
    config_id: str
    url: str
    scheme: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedPush:
    """A webhook that this process alone tells, while its lease lasts."""

    push_id: UUID
    task_id: UUID
    next_seq: int
    attempts: int
    """Failed ones, of the event at `next_seq`."""
    fence: int
    seal: str = field(repr=False)
    """Opens the one task, as the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """The webhook of a claim, with what it takes to tell it."""

    push_id: UUID
    config_id: str
    url: str
    credentials: Credentials
    first_seq: int
    maker: Principal
    """Acts as who made it: reads what that one may read now, and nothing once it is revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadPush:
    """A webhook that was given up, with everything from `next_seq` on untold."""

    push_id: UUID
    tenant_id: UUID
    task_id: UUID
    next_seq: int
    attempts: int
    reason: str
    dead_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often it is tried, and how much at a time."""

    attempts: int = 8
    """Of one event; then the webhook is given up."""
    first_s: float = 2.0
    """Before the second attempt."""
    factor: float = 5.0
    """By which each further wait is longer."""
    longest_s: float = 3600.0
    slots: int = 32
    """Webhooks that a process tells at a time."""
    per_tenant: int = 4
    """Of them of one tenant, over all processes."""
    lease_s: float = 60.0
    """Longer than one delivery may take; each delivery renews it."""
    timeout_s: float = 15.0
    """Of one delivery, look-up and connection included (A2A 1.0, section 13.2: 10 to 30 s)."""

    def delay_s(self, attempts: int, chance: float) -> float | None:
        """Return the wait after so many failed attempts; None: there is no further one.

        Args:
            attempts: 1 or more.
            chance: 0 to 1. Waits are spread over the upper half, so that what failed together does not come together.
        """
        if attempts >= self.attempts:
            return None
        whole = min(self.longest_s, self.first_s * self.factor ** (attempts - 1))
        return whole * (0.5 + chance / 2)


PACE = Pace()
"""Waits of 2, 10, 50, 250, 1250, 3600 and 3600 s: about two and a half hours."""

"""Webhooks in PostgreSQL, and their places in the outbox.

Above: the A2A face (`create`, `get`, `list_`, `delete`, in the caller's session) and `courier`. Below: `rag.db`. Whose
webhooks a session sees is row-level security's: its own, or those of the task that a claim's seal opens.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import orjson

from rag.db.pool import Database, Row, Session
from rag.errors import Conflict, NotFound, Unavailable
from rag.identity.principal import Principal
from rag.identity.secretbox import SecretBox
from rag.push.values import MAX_CONFIGS, ClaimedPush, Credentials, DeadPush, NewWebhook, Pace, Recipient, Webhook
from rag.tasks import store as tasks
from rag.tasks.values import EventKind, TaskEvent
from sql import load_queries

__all__ = [
    "CHUNK",
    "advance",
    "claim",
    "create",
    "dead",
    "delete",
    "events_from",
    "fail",
    "finish",
    "get",
    "list_",
    "recipient",
    "redeliver",
    "rest",
]

_QUERIES = load_queries("push")
_REASON = "the outbox of webhooks holds ids, numbers and times, and belongs to no tenant"
CHUNK = 32
"""Events that are read at a time."""


async def create(
    session: Session,
    principal: Principal,
    box: SecretBox,
    task_id: UUID,
    new: NewWebhook,
    *,
    first_seq: int | None = None,
) -> Webhook:
    """Add a webhook to a task that the caller sees; one of the caller's own under that name is replaced.

    It is told the task as it stands at `first_seq` (None: now), and then every later event.

    Raises:
        NotFound: The caller sees no such task.
        InvalidInput: As `NewWebhook.check`.
        Conflict: The caller has MAX_CONFIGS others on this task.
    """
    new.check()
    held = await _hold(session, task_id)
    config_id = new.config_id or str(uuid4())
    await session.fetch(_QUERIES["delete_config"], task_id=task_id, config_id=config_id)
    if await session.fetch_value(_QUERIES["count_configs"], task_id=task_id) >= MAX_CONFIGS:
        raise Conflict(f"a task has at most {MAX_CONFIGS} webhooks of one caller; delete one first")
    hook = Webhook(push_id=uuid4(), task_id=task_id, config_id=config_id, url=new.url, scheme=new.credentials.scheme)
    await session.fetch(
        _QUERIES["create_config"],
        push_id=hook.push_id,
        task_id=task_id,
        config_id=config_id,
        url=new.url,
        scheme=new.credentials.scheme,
        secrets=_closed(box, _place(principal.tenant_id, hook.push_id, new.url), new.credentials),
        first_seq=first_seq or held,
        groups=list(principal.groups),
        token_ids=list(principal.token_ids),
        token_issued_at=principal.issued_at,
    )
    return hook


async def get(session: Session, task_id: UUID, config_id: str) -> Webhook:
    """Return the caller's own webhook of that name.

    Raises:
        NotFound: The caller has none on this task.
    """
    row = await session.fetch_one(_QUERIES["get_config"], task_id=task_id, config_id=config_id)
    if row is None:
        raise NotFound("there is no such push notification configuration of yours")
    return _webhook(row)


async def list_(session: Session, task_id: UUID, *, wanted: int, after: str | None = None) -> list[Webhook]:
    """Return up to `wanted` of the caller's own webhooks on the task, by name, those after `after`.

    Raises:
        NotFound: The caller sees no such task.
    """
    await tasks.get_task(session, task_id)
    rows = await session.fetch(_QUERIES["list_configs"], task_id=task_id, after=after, wanted=wanted)
    return [_webhook(row) for row in rows]


async def delete(session: Session, task_id: UUID, config_id: str) -> None:
    """Take the caller's own webhook away; without one there is nothing to do. What is under way may still arrive.

    Raises:
        NotFound: The caller sees no such task.
    """
    await _hold(session, task_id)
    await session.fetch(_QUERIES["delete_config"], task_id=task_id, config_id=config_id)


async def _hold(session: Session, task_id: UUID) -> int:
    """Lock the task before its webhooks, as a message that brings one along does; return the seq of its last event.

    Whatever is being written is in the log by now, or will find the webhook there.
    """
    held = await session.fetch_value(_QUERIES["hold_task"], task_id=task_id)
    if held is None:
        raise NotFound("there is no such task")
    return int(held)


async def claim(database: Database, *, wanted: int, pace: Pace) -> list[ClaimedPush]:
    """Lease up to `wanted` webhooks that are due, longest waiting first.

    Raises:
        Unavailable: The database does not answer.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        rows = await session.fetch(
            _QUERIES["claim_pushes"], wanted=wanted, per_tenant=pace.per_tenant, lease_s=pace.lease_s
        )
    return [ClaimedPush(**row) for row in rows]


async def recipient(session: Session, box: SecretBox, push_id: UUID, *, expires_at: float) -> Recipient | None:
    """Return the webhook of a claim, in the session that its seal opens; None: it was taken away.

    Its maker acts until `expires_at`, in Unix seconds. Credentials that are closed under an older key are closed again
    under the active one.

    Raises:
        Conflict: The credentials cannot be opened: their key is gone.
    """
    row = await session.fetch_one(_QUERIES["claimed_config"], push_id=push_id)
    if row is None:
        return None
    credentials = _opened(box, row)
    if row["secrets"] is not None and not box.is_current(row["secrets"]):
        await session.fetch(_QUERIES["close_again"], push_id=push_id, secrets=_closed(box, _place_of(row), credentials))
    return Recipient(
        push_id=push_id,
        config_id=row["config_id"],
        url=row["url"],
        credentials=credentials,
        first_seq=row["first_seq"],
        maker=Principal(
            tenant_id=row["tenant_id"],
            subject=row["subject"],
            scopes=frozenset(),
            groups=tuple(row["groups"]),
            token_ids=tuple(row["token_ids"]),
            issued_at=row["token_issued_at"],
            expires_at=expires_at,
        ),
    )


async def events_from(session: Session, task_id: UUID, seq: int) -> list[TaskEvent]:
    """Return up to CHUNK events of the log from `seq` on."""
    rows = await session.fetch(_QUERIES["events_from"], task_id=task_id, seq=seq, wanted=CHUNK)
    return [
        TaskEvent(seq=row["seq"], kind=EventKind(row["kind"]), payload=row["payload"], created_at=row["created_at"])
        for row in rows
    ]


async def advance(session: Session, claim: ClaimedPush, *, lease_s: float) -> bool:
    """Note that everything before the claim's `next_seq` was told, and renew the lease; False: the claim is lost."""
    return bool(
        await session.fetch_value(
            _QUERIES["advance_push"],
            push_id=claim.push_id,
            fence=claim.fence,
            next_seq=claim.next_seq,
            lease_s=lease_s,
        )
    )


async def rest(session: Session, claim: ClaimedPush, *, soon: bool = False) -> bool:
    """End the lease: nothing is left to tell now, or (`soon`) whoever is free goes on."""
    return bool(await session.fetch_value(_QUERIES["rest_push"], push_id=claim.push_id, fence=claim.fence, soon=soon))


async def fail(session: Session, claim: ClaimedPush, *, delay_s: float | None, reason: str) -> bool:
    """Note a failed attempt and end the lease; without a delay the webhook is given up."""
    return bool(
        await session.fetch_value(
            _QUERIES["fail_push"], push_id=claim.push_id, fence=claim.fence, delay_s=delay_s, reason=reason
        )
    )


async def finish(session: Session, claim: ClaimedPush) -> bool:
    """Take the webhook off the outbox: nothing will ever be left to tell."""
    return bool(await session.fetch_value(_QUERIES["finish_push"], push_id=claim.push_id, fence=claim.fence))


def _webhook(row: Row) -> Webhook:
    return Webhook(**row)


def _place(tenant_id: UUID, push_id: UUID, url: str) -> tuple[str, ...]:
    """Return what credentials are bound to: copied to another webhook or address they do not open."""
    return (str(tenant_id), str(push_id), url)


def _place_of(row: Row) -> tuple[str, ...]:
    return _place(row["tenant_id"], row["push_id"], row["url"])


def _closed(box: SecretBox, place: tuple[str, ...], credentials: Credentials) -> bytes | None:
    if credentials.token is None and credentials.credentials is None:
        return None
    plain = orjson.dumps({"token": credentials.token, "credentials": credentials.credentials}).decode()
    return box.seal(plain, bound_to=place)


def _opened(box: SecretBox, row: Row) -> Credentials:
    if row["secrets"] is None:
        return Credentials(scheme=row["scheme"])
    try:
        plain = box.open(row["secrets"], bound_to=_place_of(row))
    except Unavailable as exc:
        raise Conflict(exc.message) from exc
    return Credentials(scheme=row["scheme"], **orjson.loads(plain))


async def dead(database: Database, tenant_id: UUID | None = None) -> list[DeadPush]:
    """Return what was given up, latest first, of one tenant or (None) of all. For the maintenance login."""
    async with database.unsafe_unscoped(reason=_REASON) as session:
        rows = await session.fetch(_QUERIES["dead_pushes"], tenant_id=tenant_id)
    return [DeadPush(**row) for row in rows]


async def redeliver(database: Database, tenant_id: UUID, push_id: UUID | None = None) -> int:
    """Try what was given up again, from where it stopped: one webhook, or (None) all of the tenant's; return how many.

    For the maintenance login.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        return int(await session.fetch_value(_QUERIES["redeliver_pushes"], tenant_id=tenant_id, push_id=push_id))

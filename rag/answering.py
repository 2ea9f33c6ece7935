"""The composition of what a model call goes through: catalogue, budgets, queues, the wire. Settings in, chats out.

Above: the worker. Below: `rag.llm`, `rag.catalogue`, `rag.budgets`, and `runtime`, whose database it works with.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from rag.budgets.ledger import PostgresLedger
from rag.budgets.metrics import MeteredLedger
from rag.catalogue.configured import configured
from rag.catalogue.store import CatalogueCache
from rag.identity.principal import Principal
from rag.limits.tiers import TierCache
from rag.llm.answerer import ModelChat
from rag.llm.extractive import ExtractiveChat
from rag.llm.gateway import Caller, Gateway, Meter, Queues
from rag.llm.ledger import Payer
from rag.llm.ports import Chat
from rag.runtime import CONNECTIONS, Runtime, http_client

__all__ = ["OpenChat", "open_chats"]

SERVERS = 16
"""Of models that are all busy at a time; CONNECTIONS more are for those who have their prompts counted meanwhile."""
OpenChat = Callable[[Principal, UUID, str, Meter], Awaitable[Chat]]
"""Takes a task's principal, its id, its workflow's name and what is told of each call's cost, and returns what answers
at that principal's expense."""


@asynccontextmanager
async def open_chats(runtime: Runtime) -> AsyncGenerator[OpenChat]:
    """Yield what opens a chat for a task: with a model where the tenant may use one, else the extractive answerer.

    The runtime's database login must be the worker's: the catalogue is nobody else's to read.
    """
    settings, database = runtime.settings, runtime.database
    extractive = ExtractiveChat(runtime.embedders.default)
    tiers = TierCache(database)
    salt_key = hmac.digest(runtime.cursor_key, b"bulkhead cache salt v1", "sha256")
    # a call has one connection, and each server so many places: not the client decides who waits
    async with http_client(settings, connections=CONNECTIONS + SERVERS * settings.llm_concurrency) as client:
        gateway = Gateway(
            client=client,
            known=CatalogueCache(database, keys_file=settings.llm_keys_file, otherwise=configured(settings)),
            ledger=MeteredLedger(PostgresLedger(database)),
            queues=Queues(places=settings.llm_concurrency),
        )

        async def open_chat(principal: Principal, task_id: UUID, workflow: str, meter: Meter) -> Chat:
            caller = Caller(
                payer=Payer(principal=principal, task_id=task_id),
                tier=(await tiers(principal)).name,
                cache_salt=hmac.digest(salt_key, b"cache salt " + principal.tenant_id.bytes, "sha256").hex(),
                workflow=workflow,
                meter=meter,
            )
            allowed = await gateway.allowed(caller)
            if not allowed:
                return extractive
            largest = max((offer.model for offer in allowed), key=lambda model: model.tier)
            return ModelChat(gateway=gateway, caller=caller, model=largest.name)

        yield open_chat

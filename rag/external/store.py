"""The list of a tenant's external servers, as its runs read it: under the sealed tenant, credentials opened.

Above: the worker. Below: `rag.db`, the secret box. Nothing is kept: a server that an operator removes or disables
is not asked from the next look on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from rag.db.pool import Database, Row
from rag.errors import Unavailable
from rag.external.values import ExternalServer
from rag.identity.principal import Principal
from rag.identity.secretbox import SecretBox
from sql import load_queries

__all__ = ["PURPOSE", "bound_to", "list_servers", "server_of"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("external")
PURPOSE = "external servers"
"""Of the secret box."""


async def list_servers(database: Database, principal: Principal, box: SecretBox) -> list[ExternalServer]:
    """Return the enabled servers of the principal's tenant, by name.

    Raises:
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(_QUERIES["list_external_servers"])
    return [server_of(row, principal.tenant_id, box) for row in rows]


def server_of(row: Row, tenant_id: UUID, box: SecretBox) -> ExternalServer:
    """Return the row as a value. A credential that does not open any more counts as missing, and the log says so."""
    credential = None
    if row["credential"] is not None:
        try:
            bound = bound_to(tenant_id, row["server_id"], row["url"])
            credential = box.open(bytes(row["credential"]), bound_to=bound)
        except Unavailable:
            _log.warning("the credential of an external server of tenant %s does not open; set it again", tenant_id)
    return ExternalServer(
        server_id=row["server_id"],
        name=row["name"],
        url=row["url"],
        tools=tuple(row["tools"]),
        header=row["header"],
        credential=credential,
        sends_queries=row["sends_queries"],
        enabled=row["enabled"],
    )


def bound_to(tenant_id: UUID, server_id: UUID, url: str) -> Sequence[str]:
    """Return what a credential is bound to: moved to another tenant, server or URL it does not open."""
    return (str(tenant_id), str(server_id), url)

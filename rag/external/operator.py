"""What an operator does to the list of a tenant's external servers. Runs as the maintenance login, never in a server.

Above: the CLI. Below: `rag.db`, the secret box. A credential comes in as a value and goes out of here closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from rag.db.pool import Database
from rag.errors import InvalidInput, NotFound
from rag.external.store import bound_to, server_of
from rag.external.values import ExternalServer
from rag.identity.secretbox import SecretBox
from rag.outbound import check_url
from sql import load_queries

__all__ = ["MAX_TOOLS", "ServerList"]

_QUERIES = load_queries("external")
_REASON = "the maintenance login keeps the lists of all tenants"
MAX_TOOLS = 32
_TOOL = re.compile(r"[A-Za-z0-9_./-]{1,128}")
"""As MCP names tools (server/tools, "Tool Names"), and the slash that some servers use."""
_HEADER = re.compile(r"[a-z][a-z0-9-]{0,63}")
_OURS = frozenset({"host", "cookie", "content-type", "content-length", "accept", "connection", "transfer-encoding"})
"""Headers that the client or the protocol sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerList:
    """The maintenance login's verbs for one tenant."""

    database: Database
    box: SecretBox
    tenant_id: UUID
    allow_loopback: bool = False

    async def add(
        self,
        name: str,
        *,
        url: str,
        tools: Sequence[str],
        header: str | None = None,
        credential: str | None = None,
        sends_queries: bool = False,
    ) -> ExternalServer:
        """Allow the tenant's runs to ask a server for some of its tools.

        Raises:
            Conflict: The tenant has a server of that name.
            InvalidInput: The name, the URL, a tool's name or the header is not of the allowed form.
            NotFound: There is no such tenant.
        """
        check_url(url, allow_loopback=self.allow_loopback)
        server_id = uuid4()
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            await session.fetch(
                _QUERIES["add_server"],
                tenant_id=self.tenant_id,
                server_id=server_id,
                name=name,
                url=url,
                tools=_checked_tools(tools),
                header=_checked_header(header, credential),
                credential=None if credential is None else self._closed(server_id, url, credential),
                sends_queries=sends_queries,
            )
        return await self.find(name)

    async def servers(self) -> list[ExternalServer]:
        """Return every server of the tenant, by name; disabled ones too."""
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            rows = await session.fetch(_QUERIES["list_servers_of_tenant"], tenant_id=self.tenant_id)
        return [server_of(row, self.tenant_id, self.box) for row in rows]

    async def find(self, name: str) -> ExternalServer:
        """Return the server of that name.

        Raises:
            NotFound: The tenant has none.
        """
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            row = await session.fetch_one(_QUERIES["find_server_of_tenant"], tenant_id=self.tenant_id, name=name)
        if row is None:
            raise NotFound("the tenant has no external server of that name")
        return server_of(row, self.tenant_id, self.box)

    async def change(
        self,
        name: str,
        *,
        tools: Sequence[str] | None = None,
        sends_queries: bool | None = None,
        enabled: bool | None = None,
    ) -> None:
        """Change what the server may be asked for; None leaves it as it is.

        Raises:
            NotFound: The tenant has no such server.
            InvalidInput: A tool's name is not of the allowed form.
        """
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            changed = await session.fetch_one(
                _QUERIES["set_server"],
                tenant_id=self.tenant_id,
                name=name,
                tools=None if tools is None else _checked_tools(tools),
                sends_queries=sends_queries,
                enabled=enabled,
            )
        if changed is None:
            raise NotFound("the tenant has no external server of that name")

    async def set_credential(self, name: str, *, header: str | None, credential: str | None) -> None:
        """Store the credential under the active key, for the server's present URL; without one, forget it.

        Raises:
            NotFound: The tenant has no such server.
            InvalidInput: There is a credential and no header for it, or the header is not of the allowed form.
        """
        server = await self.find(name)
        closed = None if credential is None else self._closed(server.server_id, server.url, credential)
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            await session.fetch(
                _QUERIES["set_server_credential"],
                tenant_id=self.tenant_id,
                server_id=server.server_id,
                header=_checked_header(header, credential),
                credential=closed,
            )

    async def reseal(self) -> tuple[int, list[str]]:
        """Encrypt every credential under the active key again, before a rotation drops the key that it is under.

        Returns how many there are now, and the names of the servers whose credential does not open any more.
        """
        known = await self.servers()
        held = [server for server in known if server.credential is not None]
        for server in held:
            await self.set_credential(server.name, header=server.header, credential=server.credential)
        return len(held), [server.name for server in known if server.lacks_credential]

    async def remove(self, name: str) -> None:
        """Forget the server and its credential.

        Raises:
            NotFound: The tenant has no such server.
        """
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            removed = await session.fetch_one(_QUERIES["remove_server"], tenant_id=self.tenant_id, name=name)
        if removed is None:
            raise NotFound("the tenant has no external server of that name")

    def _closed(self, server_id: UUID, url: str, credential: str) -> bytes:
        if not credential.isascii() or not credential.isprintable() or credential != credential.strip():
            raise InvalidInput("a credential is one line of printable ASCII")
        return self.box.seal(credential, bound_to=bound_to(self.tenant_id, server_id, url))


def _checked_tools(tools: Sequence[str]) -> Sequence[str]:
    if not 1 <= len(tools) <= MAX_TOOLS or len(set(tools)) != len(tools):
        raise InvalidInput(f"name 1 to {MAX_TOOLS} tools, each once")
    if not all(_TOOL.fullmatch(tool) for tool in tools):
        raise InvalidInput("a tool's name is 1 to 128 characters of a-z, A-Z, 0-9, _, ., / and -")
    return list(tools)


def _checked_header(header: str | None, credential: str | None) -> str | None:
    if header is None:
        if credential is not None:
            raise InvalidInput("a credential needs a header to go into")
        return None
    header = header.lower()
    if not _HEADER.fullmatch(header) or header in _OURS or header.startswith("mcp-"):
        raise InvalidInput("a credential goes into a header of its own, such as authorization or x-api-key")
    return header

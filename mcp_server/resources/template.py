"""What a kind of resource is: a URI template, a scope, and one async function that reads.

Above: one file per kind, and the tuple TEMPLATES of the package. Below: the SDK's RFC 6570, `call`, `suggestions`.
A resource has one URI: any other way to write it names nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import mcp_types as types
from mcp.shared.uri_template import UriTemplate

from mcp_server.call import Call, Done, Operation
from mcp_server.suggestions import Completer
from rag.errors import NotFound
from rag.identity.scopes import Scope

__all__ = ["MAX_URI_CHARS", "Contents", "Template", "canonical_id", "not_found"]

MAX_URI_CHARS = 2_048
"""The longest that is looked at; ours are at most some 300 characters."""
Contents = list[types.TextResourceContents | types.BlobResourceContents]


@dataclass(frozen=True, kw_only=True)
class Template:
    """One kind of resource. `read` gets the template's variables, decoded, of a caller whose scope was checked."""

    kind: str
    title: str
    description: str
    uri: str
    """RFC 6570, level 1."""
    scope: Scope
    read: Callable[[Call, Mapping[str, str]], Awaitable[Done[Contents]]]
    """Raises NotFound for whatever it has not; the caller is told in words that tell nothing more."""
    completers: Mapping[str, Completer]
    """Of each variable."""

    @cached_property
    def operation(self) -> Operation:
        """A read of one, as the door sees it."""
        return Operation(method="resources/read", target=self.kind, scope=self.scope)

    @cached_property
    def declaration(self) -> types.ResourceTemplate:
        """The kind as `resources/templates/list` shows it."""
        return types.ResourceTemplate(
            name=self.kind, title=self.title, description=self.description, uri_template=self.uri
        )

    def uri_of(self, **variables: str) -> str:
        """Return the one URI of a resource."""
        return self._parsed.expand(variables)

    def match(self, uri: str) -> dict[str, str] | None:
        """Return the variables in `uri`; None where it is no URI of this kind, or not the one way to write it."""
        if len(uri) > MAX_URI_CHARS or not uri.isascii():
            return None
        found = self._parsed.match(uri)
        if found is None:
            return None
        variables = {name: value for name, value in found.items() if isinstance(value, str)}
        return variables if self._parsed.expand(variables) == uri else None

    @cached_property
    def _parsed(self) -> UriTemplate:
        return UriTemplate.parse(self.uri)


def canonical_id(text: str) -> UUID:
    """Return the id that `text` writes in the one way that counts: lower case, with hyphens.

    Raises:
        NotFound: It is none.
    """
    try:
        found = UUID(text)
    except ValueError as exc:
        raise not_found() from exc
    if str(found) != text:
        raise not_found()
    return found


def not_found() -> NotFound:
    """Return the one error for what is absent, another's, hidden or no resource at all."""
    return NotFound("there is no resource of that URI")

"""The resources of the MCP face, one file each kind. Adding one: its template, a line in TEMPLATES, its test."""

from __future__ import annotations

from mcp_server.resources.artifacts import ARTIFACT
from mcp_server.resources.documents import CHUNK, DOCUMENT
from mcp_server.resources.template import Template

__all__ = ["TEMPLATES", "find_resource", "find_template"]

TEMPLATES: tuple[Template, ...] = (DOCUMENT, CHUNK, ARTIFACT)

_BY_URI = {template.uri: template for template in TEMPLATES}


def find_resource(uri: str) -> tuple[Template, dict[str, str]] | None:
    """Return the kind of resource that `uri` names, and its variables."""
    for template in TEMPLATES:
        variables = template.match(uri)
        if variables is not None:
            return template, variables
    return None


def find_template(uri_template: str) -> Template | None:
    """Return the kind of resource with exactly this template."""
    return _BY_URI.get(uri_template)

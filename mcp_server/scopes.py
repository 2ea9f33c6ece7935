"""Which operation a request is for, known from its method and the name in it: its scope lets a client step up.

Above: `app`, which hands this to `auth.Scopes`. Below: the catalogue of what there is to ask for.
"""

from __future__ import annotations

from mcp_server.call import Operation
from mcp_server.prompts import find_prompt
from mcp_server.resources import find_resource
from mcp_server.tools import find_tool

__all__ = ["find_operation"]


def find_operation(method: str, name: str) -> Operation | None:
    """Return what `method` on what is called `name` is; None where any verified caller may ask."""
    match method:
        case "tools/call":
            tool = find_tool(name)
            return tool.operation if tool else None
        case "prompts/get":
            prompt = find_prompt(name)
            return prompt.operation if prompt else None
        case "resources/read":
            resource = find_resource(name)
            return resource[0].operation if resource else None
        case _:
            return None

"""The blocks of docs/clients.md, which tests run as they stand there.

Above: the interop tests. A block that can be run is preceded by a comment with its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGE", "Block", "blocks", "pointed_at"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "clients.md"
_BLOCK = re.compile(r"<!-- run: (?P<name>[\w.-]+) -->\n```(?P<language>\w+)\n(?P<text>.*?)\n```\n", re.DOTALL)
_URLS = ("http://127.0.0.1:8080/mcp", "http://127.0.0.1:8082")
"""Of the MCP server and of the A2A server; a block names one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block."""

    language: str
    text: str


def blocks() -> dict[str, Block]:
    """Return the blocks that can be run, by name."""
    page = PAGE.read_text(encoding="utf-8")
    return {m["name"]: Block(language=m["language"], text=m["text"]) for m in _BLOCK.finditer(page)}


def pointed_at(name: str, url: str) -> str:
    """Return a block's text with a test's server in place of the page's."""
    text = blocks()[name].text
    (named,) = [one for one in _URLS if one in text]
    return text.replace(named, url)

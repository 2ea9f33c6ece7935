"""Markdown out of other people's words: shown as they are, and able to link, embed and run nothing. Pure.

Above: the reports, accounts and comparisons of workflows. Below: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["counted", "harmless", "inert", "table"]

_SPECIAL = re.compile(r"([\\`*\[\]~|])")
_BLOCK = re.compile(r"^(?:([#>+-])|(\d+)([.)]))(?=\s)")
_LINK = re.compile(r"\]\s*\(")
_DEFINITION = re.compile(r"\]:")
"""It would make a link of every [1] of the text."""


def inert(words: str) -> str:
    """Return words of a document so that Markdown shows them and does nothing else with them; also in a table."""
    shown = _SPECIAL.sub(r"\\\1", words.replace("<", "&lt;"))
    return _BLOCK.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", shown)


def harmless(text: str) -> str:
    """Return a model's Markdown without links, pictures and HTML: it may repeat what a document told it to."""
    return _DEFINITION.sub("] :", _LINK.sub("] ‹", text)).replace("<", "‹")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown, each in one line, with no pipe that is not escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: 1 claim, 2 claims."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

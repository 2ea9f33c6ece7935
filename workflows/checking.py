"""Reads every quoted place again, through the MCP server, as the caller: what the caller may not read, does not hold.

Above: the graphs that answer. Below: `citations` (pure), and the tools that the run's context opens.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from rag.errors import NotFound
from workflows.citations import Citation, Key, Quote, Read, held, reads
from workflows.nodes import Tools
from workflows.together import together

__all__ = ["check"]

READS_AT_A_TIME = 4


async def check(tools: Tools, quotes: Iterable[Quote]) -> dict[Key, Citation]:
    """Return the quotes that hold: the caller may read the document now, and its text has the words at the place.

    Raises:
        BulkheadError: The server failed, or refused the caller altogether.
    """

    async def take(read: Read) -> dict[Key, Citation]:
        arguments = {"document_id": read.document_id, "start": read.start, "end": read.end}
        try:
            stored = await tools.call("retrieve_document", arguments)
        except NotFound:  # deleted since the search, or no longer the caller's to read
            return {}
        return held(read, stored)

    found = await together([partial(take, read) for read in reads(quotes)], at_a_time=READS_AT_A_TIME)
    return {key: citation for one in found for key, citation in one.items()}

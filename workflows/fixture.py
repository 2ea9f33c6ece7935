"""The workflow `fixture`: what the A2A compatibility kit expects of an agent, case by case. Its graph: `fixture_graph`.

Above: `registry`; only a server whose BULKHEAD_TEST_FIXTURES is on lets anybody ask for it. Below: `workflow`. The kit
names a case by how a messageId begins; the tasks themselves are as real as any: accepted, leased, run and logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from workflows.workflow import CostBound, Workflow, parsed

__all__ = ["CASES", "FIXTURE", "Case", "case_of"]

STREAMING_TIMEOUT_S = 2.0
"""The kit's TCK_STREAMING_TIMEOUT, unless it is told another."""
ARTIFACT = "result"
_FILE = {"media_type": "text/plain", "filename": "output.txt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one fixture does, in this order."""

    works: bool = False
    """Says that it is working."""
    wait_s: float = 0.0
    pieces: tuple[Mapping[str, Any], ...] = ()
    """Parts of its artifact, each one an event."""
    asks: bool = False
    rejects: str | None = None
    says: str | None = None
    """With its end."""


CASES: Mapping[str, Case] = {
    "tck-complete-task": Case(says="Hello from TCK"),
    "tck-delayed-complete": Case(works=True, wait_s=STREAMING_TIMEOUT_S, says="Done after delay"),
    "tck-artifact-text": Case(pieces=({"text": "Generated text content"},)),
    "tck-artifact-file": Case(pieces=({"raw": "dGNr", **_FILE},)),
    "tck-artifact-file-url": Case(pieces=({"url": "https://example.com/output.txt", **_FILE},)),
    "tck-artifact-data": Case(pieces=({"data": {"key": "value", "count": 42}},)),
    "tck-input-required": Case(asks=True),
    "tck-reject-task": Case(rejects="rejected"),
    "tck-stream-001": Case(works=True, pieces=({"text": "Stream hello from TCK"},)),
    "tck-stream-002": Case(),
    "tck-stream-003": Case(works=True, pieces=({"text": "Stream task lifecycle"},)),
    "tck-stream-ordering-001": Case(works=True, pieces=({"text": "Ordered output"},)),
    "tck-stream-artifact-text": Case(works=True, pieces=({"text": "Streamed text content"},)),
    "tck-stream-artifact-file": Case(works=True, pieces=({"raw": "dGNr", **_FILE},)),
    "tck-stream-artifact-chunked": Case(works=True, pieces=({"text": "chunk-1 "}, {"text": "chunk-2"})),
    # long enough for a second subscriber to come, whatever the machine is busy with
    "test-resubscribe-message-id": Case(works=True, wait_s=2.5 * STREAMING_TIMEOUT_S),
    "tck-": Case(says="done"),
}
"""By how the messageId begins. A message that begins like several is of the longest."""


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    case: str


def case_of(message_id: str) -> str | None:
    """Return the name of the case that a message asks for; None for a message like any other."""
    return max((name for name in CASES if message_id.startswith(name)), key=len, default=None)


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: No case is named.
    """
    return {"case": parsed(_Input, "text", text, options).case}


FIXTURE = Workflow(
    name="fixture",
    title="Compatibility kit",
    description="Answers the messages of the A2A compatibility kit as the kit expects it.",
    tags=("test",),
    examples=(),
    scopes=frozenset(),
    time_limit_s=60.0,
    bound=CostBound(calls=1, tokens=1),
    options={"type": "object", "properties": {"case": {"enum": list(CASES)}}, "required": ["case"]},
    artifacts=(ARTIFACT,),
    parse=parse,
)

"""Server-sent events of the OpenAI API taken out of a body of bytes: one JSON object on each `data:` line. No I/O.

Above: `wire`. Below: nothing. Everything that comes in is a stranger's: lines, their sum and their depth are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, cast

__all__ = ["DONE", "EventStream", "Malformed"]

MAX_LINE_BYTES = 1 << 20


class Malformed(Exception):
    """The bytes are no stream of this API, or longer than one may be. Says nothing of what they hold."""


class Done:
    """The type of `DONE`."""


DONE: Final = Done()
"""The server's own word that the stream ends here: `data: [DONE]`."""


class EventStream:
    """Takes bytes as they come, in whatever pieces, and gives the events that are complete."""

    def __init__(self, *, max_bytes: int, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """`max_bytes` bounds everything: events, comments and blank lines."""
        self._buffer = bytearray()
        self._max_line_bytes = max_line_bytes
        self._left = max_bytes

    def feed(self, data: bytes) -> Iterator[dict[str, Any] | Done]:
        """Yield the events that `data` completes, and `DONE`. Comments and other fields are skipped.

        Raises:
            Malformed: There is more of it than there may be, or an event that is not a JSON object.
        """
        self._left -= len(data)
        if self._left < 0:
            raise Malformed("more than the answer can be")
        searched = len(self._buffer)
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", max(searched, start))) >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            if len(line) > self._max_line_bytes:
                raise Malformed("a line without end")
            event = _event(line)
            if event is not None:
                yield event
        del self._buffer[:start]
        if len(self._buffer) > self._max_line_bytes:
            raise Malformed("a line without end")


def _event(line: bytes) -> dict[str, Any] | Done | None:
    name, _, value = line.partition(b":")
    value = value.strip()
    if name != b"data" or not value:
        return None
    if value == b"[DONE]":
        return DONE
    try:
        event: object = json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise Malformed("not JSON") from exc
    if not isinstance(event, dict):
        raise Malformed("not a JSON object")
    return cast("dict[str, Any]", event)

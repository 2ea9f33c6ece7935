"""Events out of bytes: however these are cut, the same events; whatever they hold, bounds that hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.llm.sse import DONE, Done, EventStream, Malformed

VALUES = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=4)
NOISE = st.sampled_from([b": comment", b"event: x", b"", b"retry: 3", b"data:", b"nonsense", b"datum: {}"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"])


def read(parts: list[bytes], *, max_bytes: int = 1 << 20, max_line_bytes: int = 1 << 16) -> list[dict[str, Any] | Done]:
    stream = EventStream(max_bytes=max_bytes, max_line_bytes=max_line_bytes)
    return [event for part in parts for event in stream.feed(part)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), values=st.lists(VALUES, max_size=8), done=st.booleans())
def test_the_same_events_come_out_however_the_bytes_are_cut(
    data: st.DataObject, values: list[dict[str, Any]], done: bool
) -> None:
    body = b""
    for value in values:
        body += data.draw(NOISE) + data.draw(ENDS)
        body += data.draw(st.sampled_from([b"data: ", b"data:", b"data:   "]))
        body += json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode() + data.draw(ENDS)
    if done:
        body += b"data: [DONE]\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=20)))
    parts = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(parts) == [*values, *([DONE] if done else [])]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_events_or_malformed_and_nothing_else(parts: list[bytes]) -> None:
    try:
        read(parts)
    except Malformed:
        return


@pytest.mark.parametrize("line", [b"data: {", b"data: 1", b"data: null", b'data: "x"', b"data: [1]", b"data: \xff"])
def test_what_is_no_object_is_malformed(line: bytes) -> None:
    with pytest.raises(Malformed):
        read([line + b"\n"])


def test_an_event_without_an_end_of_line_does_not_come() -> None:
    assert read([b'data: {"a":1}']) == []


def test_events_before_a_malformed_one_come_out_first() -> None:
    stream = EventStream(max_bytes=1000)
    events = stream.feed(b'data: {"a":1}\ndata: {{\n')
    assert next(events) == {"a": 1}
    with pytest.raises(Malformed):
        next(events)


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_line_is_bounded_with_and_without_an_end(piece: int) -> None:
    long = b"data: " + b'"' + b"x" * 200 + b'"\n'
    for body in (long, long[:-1]):
        with pytest.raises(Malformed, match="a line without end"):
            read([body[start : start + piece] for start in range(0, len(body), piece)], max_line_bytes=100)


def test_everything_together_is_bounded_comments_too() -> None:
    with pytest.raises(Malformed, match="more than the answer can be"):
        read([b": still here\n\n"] * 100, max_bytes=1000)

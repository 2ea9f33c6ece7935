"""What a stranger's answer becomes, and how a stranger's tool is asked: pure."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from mcp_types import CallToolResult, TextContent

from rag.external.asking import query_argument
from rag.external.text import MAX_DEPTH, MAX_RESULT_CHARS, clean, depth_of, result_of

TEXT = {"type": "string"}


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_text_blocks_are_joined_and_hashed() -> None:
    result = result_of(CallToolResult(content=[TextContent(text="one"), TextContent(text="two")]))
    assert result.text == "one\n\ntwo"
    assert result.sha256 == hashlib.sha256(b"one\n\ntwo").hexdigest()
    assert not result.truncated


def test_structure_stands_in_for_missing_text_and_only_so_deep() -> None:
    assert '"answer": 42' in result_of(CallToolResult(content=[], structured_content={"answer": 42})).text
    with pytest.raises(ValueError, match="deep"):
        result_of(CallToolResult(content=[], structured_content={"a": nested(MAX_DEPTH)}))


def test_a_long_answer_is_cut_and_says_so() -> None:
    result = result_of(CallToolResult(content=[TextContent(text="x" * (MAX_RESULT_CHARS + 1))]))
    assert (len(result.text), result.truncated) == (MAX_RESULT_CHARS, True)


def test_characters_that_no_row_and_no_terminal_should_get_are_gone() -> None:
    assert clean("a\0b\x1b[31mc\ud800d\u202ee\tf\ng") == "a b [31mc d e\tf\ng"


def test_depth_is_counted_without_recursion() -> None:
    assert [depth_of(value) for value in (1, [], [[1]], {"a": {"b": []}})] == [0, 1, 2, 3]
    assert depth_of(nested(100_000)) > MAX_DEPTH


@pytest.mark.parametrize(
    ("schema", "argument"),
    [
        ({"properties": {"words": TEXT}, "required": ["words"]}, "words"),
        ({"properties": {"limit": {"type": "integer"}, "q": TEXT}}, "q"),
        ({"properties": {"query": {"type": ["string", "null"]}}}, "query"),
        ({"properties": {"query": TEXT, "year": {"type": "integer"}}, "required": ["query", "year"]}, None),
        ({"properties": {"year": {"type": "integer"}}, "required": ["year"]}, None),
        ({"properties": {"query": {"type": "string", "enum": ["a"]}}, "required": ["query"]}, None),
        ({"properties": {"target": TEXT}}, None),
        ({}, None),
        ({"properties": "no", "required": 3}, None),
    ],
)
def test_a_tool_is_asked_only_where_its_schema_has_one_place_for_a_question(
    schema: dict[str, Any], argument: str | None
) -> None:
    assert query_argument(schema) == argument

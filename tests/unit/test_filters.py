"""A filter is read strictly, refused with the place and without the value, and compiled to one canonical text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidInput
from rag.retrieval.filters import (
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_KEYS,
    MAX_STRING_CHARS,
    MAX_TEXT_CHARS,
    MAX_VALUES,
    All,
    AnyOf,
    Compare,
    Condition,
    Not,
    OneOf,
    Present,
    StartsWith,
    parse_filter,
    to_jsonpath,
)

YEAR = ("metadata", "year")


def nested(levels: int) -> dict[str, Any]:
    """Return a condition inside so many groups."""
    inner: dict[str, Any] = {"field": "source", "eq": "x"}
    for _ in range(levels):
        inner = {"not": inner}
    return inner


def test_each_form_becomes_the_value_that_it_names() -> None:
    found = parse_filter(
        {
            "all": [{"field": "metadata.year", "gte": 2020, "lt": 2025.5}, {"field": "updated_at", "gt": "2026-01-01"}],
            "any": [{"field": "source", "prefix": "law/"}, {"field": "metadata.tag", "in": ["a", 1, True]}],
            "not": {"field": "metadata.year", "exists": True},
            "metadata": {"a.b": "v"},
            "title": "T",
        }
    )
    first_of_january = datetime(2026, 1, 1, tzinfo=UTC)
    assert found == All(
        parts=(
            All(
                parts=(
                    Condition(
                        path=YEAR, tests=(Compare(operator=">=", bound=2020), Compare(operator="<", bound=2025.5))
                    ),
                    Condition(path=("updated_at",), tests=(Compare(operator=">", bound=first_of_january),)),
                )
            ),
            AnyOf(
                parts=(
                    Condition(path=("source",), tests=(StartsWith(text="law/"),)),
                    Condition(path=("metadata", "tag"), tests=(OneOf(values=("a", 1, True)),)),
                )
            ),
            Not(part=Condition(path=YEAR, tests=(Present(),))),
            Condition(path=("metadata", "a.b"), tests=(OneOf(values=("v",)),)),
            Condition(path=("title",), tests=(OneOf(values=("T",)),)),
        )
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04", datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
        ("2026-01-02 03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5+01:00", datetime(2026, 1, 2, 2, 4, 5, 500_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456-03:30", datetime(2026, 1, 2, 6, 34, 5, 123_456, tzinfo=UTC)),
        ("2026-01-02T03:04:05+01", datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
    ],
)
def test_a_date_is_a_moment_in_utc(text: str, expected: datetime) -> None:
    found = parse_filter({"field": "created_at", "gte": text})
    assert found == Condition(path=("created_at",), tests=(Compare(operator=">=", bound=expected),))


SECRET = "the caller's own words"
REFUSED: list[tuple[object, str]] = [
    (None, "filter: must be an object"),
    ([], "filter: must be an object"),
    ({"all": []}, "filter.all: must be a list of at least one"),
    ({"any": {"field": "source", "eq": SECRET}}, "filter.any: must be a list"),
    ({"all": [{"any": [{}]}]}, r"filter.all\[0\].any\[0\]: must not be empty"),
    ({"not": []}, "filter.not: must be an object"),
    ({"metadata": {}}, "filter.metadata: must be an object of at least one key"),
    ({"metadata": {"k": [SECRET]}}, "filter.metadata: must be a text, a number, true or false"),
    ({"metadata": {"k": None}}, "filter.metadata: .* exists"),
    ({"metadata": {"": 1}}, "filter.metadata: a key"),
    ({SECRET: 1}, "filter: has a key that is none of"),
    ({"source": 1}, "filter.source: must be a text"),
    ({"field": "source"}, "filter: beside field"),
    ({"field": "source", "ne": SECRET}, "filter: beside field"),
    ({"field": "source", "eq": SECRET, "all": []}, "filter: beside field"),
    ({"field": SECRET, "eq": 1}, "filter.field: must be metadata.<key>"),
    ({"field": "metadata", "eq": 1}, "filter.field: must be metadata.<key>"),
    ({"field": "metadata.", "eq": 1}, "filter.field: a key"),
    ({"field": "source.x", "eq": 1}, "filter.field: must be metadata.<key>"),
    ({"field": [], "eq": 1}, "filter.field: must be"),
    ({"field": ["metadata", 1], "eq": 1}, "filter.field: a key"),
    ({"field": {"a": 1}, "eq": 1}, "filter.field: must be"),
    ({"field": "metadata" + ".k" * (MAX_KEYS + 1), "eq": 1}, "filter.field: at most 8 keys"),
    ({"field": "metadata." + "k" * 257, "eq": 1}, "filter.field: a key"),
    ({"field": "metadata.k", "gt": True}, "filter.gt: must be a number or an ISO 8601 date"),
    ({"field": "metadata.k", "gt": SECRET}, "filter.gt: must be a number or an ISO 8601 date"),
    ({"field": "metadata.k", "gt": "2026-02-30"}, "filter.gt: must be a number or"),
    ({"field": "metadata.k", "gt": "0001-01-01T00:00+01:00"}, "filter.gt: must be a number or"),
    ({"field": "metadata.k", "gt": "2026-01-01T00:00:00.1234567Z"}, "filter.gt: must be a number or"),
    ({"field": "metadata.k", "gt": float("nan")}, "filter.gt: must be a finite number"),
    ({"field": "metadata.k", "eq": float("inf")}, "filter.eq: must be a finite number"),
    ({"field": "metadata.k", "eq": 2**64}, "filter.eq: .* 64 bits"),
    ({"field": "metadata.k", "eq": 10**5000}, "filter.eq: .* 64 bits"),
    ({"field": "created_at", "gt": 1}, "filter.gt: must be an ISO 8601 date"),
    ({"field": "created_at", "eq": "2026-01-01"}, "filter.eq: a time is compared by gt"),
    ({"field": "created_at", "prefix": "2026"}, "filter.prefix: must be a text, about"),
    ({"field": "created_at", "exists": True}, "filter.exists: "),
    ({"field": "source", "gte": "a"}, "filter.gte: source has no order"),
    ({"field": "metadata.k", "exists": 1}, "filter.exists: must be true or false"),
    ({"field": "metadata.k", "exists": True, "eq": 1}, "filter.exists: must be true or false, alone"),
    ({"field": "metadata.k", "in": []}, "filter.in: must be a list of at least one"),
    ({"field": "metadata.k", "in": SECRET}, "filter.in: must be a list"),
    ({"field": "metadata.k", "in": [1, None]}, r"filter.in\[1\]: must be"),
    ({"field": "metadata.k", "in": [1] * (MAX_VALUES + 1)}, "filter.in: at most 256 values"),
    ({"field": "metadata.k", "eq": "a\0b"}, "filter.eq: has NUL"),
    ({"field": "metadata.k", "eq": "\ud800"}, "filter.eq: has NUL characters or lone surrogates"),
    ({"field": "metadata.\udfff", "eq": 1}, "filter.field: has NUL characters or lone surrogates"),
    ({"metadata": {"\0": 1}}, "filter.metadata: has NUL"),
    ({"field": "metadata.k", "prefix": "x" * (MAX_STRING_CHARS + 1)}, "filter.prefix: a text has at most"),
    (nested(MAX_DEPTH + 1), "nested deeper than 8"),
    (nested(100_000), "nested deeper than 8"),
    ({"any": [{"source": "x"}] * (MAX_CONDITIONS + 1)}, "filter: at most 64 conditions"),
    ({"any": [{"field": "source", "in": ["x"] * 200}] * 2}, "filter: at most 256 values"),
    ({"field": "source", "in": ["x" * 1024] * (MAX_TEXT_CHARS // 1024 + 1)}, "filter: at most 32768 characters"),
]


@pytest.mark.parametrize(("given_", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_filter_is_refused_with_its_place_and_without_its_words(given_: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_filter(given_)
    assert SECRET not in caught.value.message
    assert len(caught.value.message) < 250


def test_limits_themselves_are_allowed() -> None:
    parse_filter(nested(MAX_DEPTH))
    parse_filter({"any": [{"source": "x"}] * MAX_CONDITIONS})
    parse_filter({"field": "metadata" + ".k" * MAX_KEYS, "in": ["x" * 128] * MAX_VALUES})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["all", "any", "not", "field", "metadata", "eq", "in", "gt", "exists", "prefix", "source"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
)


@given(JSON)
def test_any_json_is_a_filter_or_refused(value: object) -> None:
    try:
        found = parse_filter(value)
    except InvalidInput:
        return
    assert to_jsonpath(found).isascii()


def test_the_text_is_the_same_in_whatever_order_a_filter_is_written() -> None:
    first = {
        "all": [{"field": "metadata.y", "gte": 1, "lt": 2.0}, {"field": "source", "in": ["a", "b", "a"]}],
        "not": {"any": [{"title": "x"}, {"title": "y"}, {"title": "x"}]},
    }
    second = {
        "not": {"any": [{"title": "y"}, {"title": "x"}]},
        "all": [{"field": ["source"], "in": ["b", "a"]}, {"field": ["metadata", "y"], "lt": 2, "gte": 1.0}],
    }
    assert to_jsonpath(parse_filter(first)) == to_jsonpath(parse_filter(second))
    third = json.loads(json.dumps(first).replace('"gte"', '"gt"'))
    assert to_jsonpath(parse_filter(first)) != to_jsonpath(parse_filter(third))


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_no_text_leaves_its_quotes(key: str, value: str) -> None:
    try:
        found = parse_filter({"metadata": {key: value}})
    except InvalidInput:
        assert any(bad in key + value for bad in ("\0", *map(chr, range(0xD800, 0xE000))))
        return
    expected = f'exists($."metadata".{json.dumps(key)} ? (@.type() != "array" && (@ == {json.dumps(value)})))'
    assert to_jsonpath(found) == expected

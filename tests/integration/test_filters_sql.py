"""PostgreSQL's answer to a compiled filter is that of a second implementation, written from docs/filters.md alone."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.retrieval.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_STRING_CHARS, MAX_VALUES, parse_filter, to_jsonpath
from tests.support.world import Cluster

pytestmark = pytest.mark.anyio
Json = Any
SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much)
MICROSECOND = timedelta(microseconds=1)
YEAR_1 = datetime(1, 1, 1)  # noqa: DTZ001
END_OF_TIME = (datetime(9999, 12, 31, 23, 59, 59, 999_999) - YEAR_1) // MICROSECOND + 1  # noqa: DTZ001
_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?(?:(Z)|([+-])(\d\d)(?::(\d\d))?)?)?",
    re.ASCII,
)


def instant(text: str) -> int | None:
    """Return microseconds since the year 1 in UTC, or None for what is no date."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, zone_hours, zone_minutes = match.groups(default="0")
    try:
        # reckoned without a zone: the years 1 and 9999 have no room for it
        local = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))  # noqa: DTZ001
    except ValueError:
        return None
    if int(zone_hours) > 14 or int(zone_minutes) > 59:
        return None
    offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes)) * (-1 if sign == "-" else 1)
    return ((local - YEAR_1) - offset) // MICROSECOND + int(fraction.ljust(6, "0"))


def is_number(value: Json) -> bool:
    """Say whether JSON calls it a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(value: float) -> Decimal:
    """Return the number that JSON writes for it."""
    return Decimal(json.dumps(value))


def found_at(value: Json, path: list[str]) -> Iterator[Json]:
    """Yield the values at `path`: an array stands for its elements, one level."""
    values = cast("list[Json]", value if isinstance(value, list) else [value])
    for one in values:
        if not path:
            yield one
        elif isinstance(one, dict) and path[0] in one:
            yield from found_at(one[path[0]], path[1:])


def equal(value: Json, wanted: Json) -> bool:
    """Compare without any conversion."""
    if is_number(value) and is_number(wanted):
        return exact(value) == exact(wanted)
    return type(value) is type(wanted) and value == wanted


def in_order(value: Json, operator: str, bound: Json) -> bool:
    """Compare two numbers or two dates; whatever is neither is in no order."""
    left: Decimal | int | None = None
    right: Decimal | int | None = None
    if is_number(value) and is_number(bound):
        left, right = exact(value), exact(bound)
    elif isinstance(value, str) and isinstance(bound, str):
        left, right = instant(value), instant(bound)
    if left is None or right is None:
        return False
    return {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}[operator]


def passes(value: Json, operator: str, operand: Json) -> bool:
    """Apply one operator to one value."""
    if operator == "eq":
        return equal(value, operand)
    if operator == "in":
        return any(equal(value, one) for one in operand)
    if operator == "prefix":
        return isinstance(value, str) and value.startswith(operand)
    return in_order(value, operator, operand)


def matches(wanted: Mapping[str, Json], record: Json) -> bool:
    """Return what docs/filters.md says."""
    if "field" in wanted:
        field = wanted["field"]
        values = list(found_at(record, field.split(".") if isinstance(field, str) else field))
        operators = {key: value for key, value in wanted.items() if key != "field"}
        if "exists" in operators:
            return any(value is not None for value in values) == operators["exists"]
        return any(all(passes(value, *operator) for operator in operators.items()) for value in values)
    verdicts: list[bool] = []
    for key, inner in wanted.items():
        if key == "all":
            verdicts.append(all(matches(part, record) for part in inner))
        elif key == "any":
            verdicts.append(any(matches(part, record) for part in inner))
        elif key == "not":
            verdicts.append(not matches(inner, record))
        elif key == "metadata":
            verdicts += [
                any(equal(one, of) for one in found_at(record, ["metadata", name])) for name, of in inner.items()
            ]
        else:
            verdicts.append(record[key] == inner)
    return all(verdicts)


KEYS = st.sampled_from(["a", "b", "a.b", 'q"', "back\\slash", "$", "@", "last", "ü😀", "O'Brien", "\x01\x7f", "*"])
TEXTS = st.sampled_from(
    ["x", "law/", "law/1", "LAW/1", "1", "true", "null", "", 'q"', "\\", "\\u0041", "A", "😀", "\u2028", "é"]
)
ODD_DATES = [
    "2026-01-01",
    "2026-01-01T00:00",
    "2026-02-30",
    "2026-1-1",
    "0000-01-01",
    "2026-01-01T24:00:00",
    "12:00:00",
    "20260101",
    "2026-W01-1",
    "2026-01-01T00:00:60",
    "2026-01-01T00:00:00.1234567Z",
    "2026-01-01T01:00:00+01:00",
    "2025-12-31T23:00:00-01:00",
    "٢٠٢٦-٠١-٠١",
    "2026-01-01T00:00:00CET",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999-14:00",
    " 2026-01-01",
    "2026-01-01\n",
]
ODD_VALUES: list[Json] = [
    *(None, True, False, 0, 1, 1.0, 2.5, -3, 1e22, 5e-324, "", "x", "1", "true", "null", "law/1", "2026-01-01"),
    *([], [None], [[1]], [["x"]], [[[]]], [1, "x", "2026-01-01"], ["law/", True], ["y", 0], [-1, 9]),
    *({}, {"k": 1}, {"x": "x"}, [{"k": 1}], ["2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00", "law/2"]),
]
ZONES = ("", "", "Z", "+00:00", "+01:00", "-03:30", "+14", "-12", "+0100", " +01:00", "+15:00", "z")
SPECIFICS = ("auto", "minutes", "seconds", "milliseconds", "microseconds")
MOMENTS = st.datetimes() | st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001
NUMBERS = (
    st.integers(-3, 3)
    | st.sampled_from([0.1, -0.0, 1.0, 2.5, 1e22, 1e-7, -1.5e300, 5e-324, 2**53 + 1, float(2**60), 2**64 - 1, -(2**63)])
    | st.floats(allow_nan=False, allow_infinity=False)
)
# Functions and no expressions of strategies: Hypothesis shows an expression whole, and these are long.


@st.composite
def dates(draw: st.DrawFn) -> str:
    """Draw a date of any form, or something like it."""
    if draw(st.booleans()):
        return draw(st.sampled_from(ODD_DATES) | st.dates().map(str))
    moment = draw(MOMENTS).isoformat(draw(st.sampled_from("TT t")), draw(st.sampled_from(SPECIFICS)))
    return moment + draw(st.sampled_from(ZONES))


def in_range(text: str) -> bool:
    """Say whether it is a date whose moment in UTC is in the years 1 to 9999."""
    found = instant(text)
    return found is not None and 0 <= found < END_OF_TIME


@st.composite
def values(draw: st.DrawFn) -> Json:
    """Draw metadata."""
    return draw(
        st.recursive(
            TEXTS | dates() | NUMBERS | st.booleans() | st.none(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
            max_leaves=5,
        )
    )


@st.composite
def records(draw: st.DrawFn) -> Json:
    """Draw what stands beside a document."""
    texts = {key: draw(TEXTS) for key in ("source", "title", "media_type")}
    times = {key: draw(MOMENTS).isoformat("T", "microseconds") + "Z" for key in ("created_at", "updated_at")}
    return {"metadata": draw(st.dictionaries(KEYS, values(), max_size=5)), **texts, **times}


@st.composite
def conditions(draw: st.DrawFn, field: Json) -> Json:
    """Draw a condition about this field in metadata."""
    scalars = TEXTS | dates() | NUMBERS | st.booleans()
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return {"field": field, "exists": draw(st.booleans())}
    if kind == 1:
        return {"field": field, "in": draw(st.lists(scalars, min_size=1, max_size=4))}
    if kind == 2:
        operators = {"eq": scalars, "prefix": TEXTS, "gte": NUMBERS}
        return {"field": field, **draw(st.fixed_dictionaries({}, optional=operators).filter(bool))}
    bounds = draw(st.sampled_from([NUMBERS, dates().filter(in_range)]))
    order = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), bounds, min_size=1, max_size=3)
    return {"field": field, **draw(order)}


@st.composite
def any_conditions(draw: st.DrawFn) -> Json:
    """Draw a condition about a field of ours or anywhere in metadata."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        order = st.dictionaries(st.sampled_from(["gt", "lte"]), dates().filter(in_range), min_size=1)
        return {"field": draw(st.sampled_from(["created_at", "updated_at"])), **draw(order)}
    if kind == 1:
        operators = {"eq": TEXTS, "prefix": TEXTS, "in": st.lists(TEXTS, min_size=1)}
        some = st.fixed_dictionaries({}, optional=operators).filter(bool)
        return {"field": draw(st.sampled_from(["source", "title", "media_type"])), **draw(some)}
    path = draw(st.lists(KEYS, min_size=1, max_size=2))
    dotted = draw(st.booleans()) and not any("." in key for key in path)
    return draw(conditions(".".join(["metadata", *path]) if dotted else ["metadata", *path]))


@st.composite
def filters(draw: st.DrawFn, depth: int = 3) -> Json:
    """Draw a filter of up to so many levels of groups."""
    if depth == 0 or draw(st.booleans()):
        return draw(any_conditions())
    inner = filters(depth - 1)
    scalars = TEXTS | dates() | NUMBERS | st.booleans()
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "all": st.lists(inner, min_size=1, max_size=3),
                "any": st.lists(inner, min_size=1, max_size=3),
                "not": inner,
                "metadata": st.dictionaries(KEYS, scalars, min_size=1, max_size=2),
                "source": TEXTS,
            },
        ).filter(bool)
    )


@pytest.fixture(name="connection")
async def connection_fixture(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection with no more than PostgreSQL's own settings."""
    connection = cast("asyncpg.Connection", await asyncpg.connect(cluster.server.superuser_url))
    yield connection
    await connection.close()


async def answers(connection: asyncpg.Connection, wanted: Json, beside: list[Json]) -> list[bool | None]:
    """Return PostgreSQL's verdict on each record."""
    rows = await connection.fetch(
        "select record @@ $2::jsonpath from unnest($1::jsonb[]) with ordinality as r (record, place) order by place",
        [json.dumps(record) for record in beside],
        to_jsonpath(parse_filter(wanted)),
    )
    return [row[0] for row in rows]


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(wanted=filters(), beside=st.lists(records(), min_size=1, max_size=8))
async def test_every_verdict_is_that_of_a_second_implementation(
    connection: asyncpg.Connection, wanted: Json, beside: list[Json]
) -> None:
    expected = [matches(wanted, record) for record in beside]
    assert await answers(connection, wanted, beside) == expected
    # the same filter turned round selects the others, and the others only
    assert await answers(connection, {"not": wanted}, beside) == [not verdict for verdict in expected]


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(wanted=conditions(["metadata", "k"]), drawn=st.lists(values(), max_size=4))
async def test_every_kind_of_value_is_judged_alike(
    connection: asyncpg.Connection, wanted: Json, drawn: list[Json]
) -> None:
    beside = [{"metadata": {"k": value}} for value in (*ODD_VALUES, *drawn)]
    expected = [matches(wanted, record) for record in beside]
    assert await answers(connection, wanted, beside) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(
    drawn=st.lists(dates(), max_size=4),
    bound=dates().filter(in_range),
    operator=st.sampled_from(["gt", "gte", "lt", "lte"]),
)
async def test_dates_of_every_form_are_compared_as_moments(
    connection: asyncpg.Connection, drawn: list[str], bound: str, operator: str
) -> None:
    stored = [*ODD_DATES, *drawn, bound]
    beside = [{"metadata": {"d": value}} for value in stored]
    expected = [in_order(value, operator, bound) for value in stored]
    assert await answers(connection, {"field": "metadata.d", operator: bound}, beside) == expected


RECORD = {
    "metadata": {"year": 2021, "tags": ["tax", "bank"], "filed": "2026-03-01T23:30:00-02:00", "by": {"name": "Ada"}},
    "source": "law/tax.md",
    "title": "Tax",
    "media_type": "text/markdown",
    "created_at": "2026-01-01T00:00:00.000000Z",
    "updated_at": "2026-02-01T12:00:00.000001Z",
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"metadata": {"year": 2021, "tags": "bank"}}, True),
        ({"metadata": {"year": "2021"}}, False),
        ({"metadata": {"year": 2021.0}}, True),
        ({"field": "metadata.year", "gte": 2021, "lt": 2022}, True),
        ({"field": "metadata.year", "gt": 2021}, False),
        ({"field": "metadata.year", "gte": "2020-01-01"}, False),
        ({"field": "metadata.tags", "in": ["law", "tax"]}, True),
        ({"field": "metadata.by.name", "prefix": "A"}, True),
        ({"field": ["metadata", "by.name"], "exists": True}, False),
        ({"field": "metadata.absent", "eq": 1}, False),
        ({"not": {"field": "metadata.absent", "eq": 1}}, True),
        ({"field": "metadata.filed", "gte": "2026-03-02T01:30:00Z", "lte": "2026-03-02T01:30:00Z"}, True),
        ({"field": "metadata.filed", "lt": "2026-03-02"}, False),
        ({"field": "source", "prefix": "law/"}, True),
        ({"source": "law/tax.md", "media_type": "text/plain"}, False),
        ({"field": "updated_at", "gt": "2026-02-01T12:00:00Z"}, True),
        ({"field": "updated_at", "lte": "2026-02-01T12:00:00.000001Z"}, True),
        ({"field": "created_at", "gte": "2026-01-01", "lt": "2026-01-02"}, True),
        ({"field": "created_at", "lt": "2026-01-01T01:00:00+01:00"}, False),
        ({"any": [{"source": "x"}, {"title": "Tax"}], "not": {"metadata": {"tags": "bank"}}}, False),
    ],
)
async def test_the_examples_that_callers_read(connection: asyncpg.Connection, wanted: Json, expected: bool) -> None:
    assert await answers(connection, wanted, [RECORD]) == [expected]


async def test_the_largest_filter_is_answered(connection: asyncpg.Connection) -> None:
    texts = ['"' * (MAX_STRING_CHARS // 8 - 3) + f"{number:03}" for number in range(MAX_VALUES - MAX_CONDITIONS + 1)]
    dates = [{"field": "metadata.d", "gt": "2026-01-01"}] * (MAX_CONDITIONS - 1)
    wanted: Json = {"any": [*dates, {"field": "source", "in": texts}]}
    for _ in range(MAX_DEPTH - 1):
        wanted = {"not": wanted}
    record: Json = {"metadata": {"d": ["x"] * 100}, "source": texts[-1]}
    assert await answers(connection, wanted, [record, {"metadata": {}, "source": ""}]) == [False, True]

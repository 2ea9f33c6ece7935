"""Filters over what stands beside a document: read from JSON, and compiled to one jsonpath predicate.

Above: `search`, which binds the predicate as a parameter of `jsonb @@ jsonpath`, and the tools that take a filter from
a model. Below: only the errors. docs/filters.md has the rules for callers. Two hold the rest together:

- A condition either holds or does not; there is no third value. A missing key, another type or a text that is no date
  make it not hold, so `not` selects exactly the documents that its inside does not.
- An array stands for its elements, one level deep, at each key of the path and at its end.

The record is {"metadata": {...}, "source", "title", "media_type", "created_at", "updated_at"}; the two times are text
in one form, UTC with microseconds and Z, so that the order of the texts is the order of the times.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from rag.errors import InvalidInput

__all__ = [
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "MAX_KEYS",
    "MAX_KEY_CHARS",
    "MAX_STRING_CHARS",
    "MAX_TEXT_CHARS",
    "MAX_VALUES",
    "All",
    "AnyOf",
    "Compare",
    "Condition",
    "Filter",
    "Not",
    "OneOf",
    "Present",
    "StartsWith",
    "Test",
    "parse_filter",
    "to_jsonpath",
]

MAX_DEPTH = 8
"""Of `all`, `any` and `not` inside one another."""
MAX_CONDITIONS = 64
MAX_VALUES = 256
"""To compare with, in all conditions together; each costs a comparison per document."""
MAX_STRING_CHARS = 1024
"""Of one value: the longest source."""
MAX_TEXT_CHARS = 32_768
"""Of all values together."""
MAX_KEYS = 8
"""From `metadata` down to the value."""
MAX_KEY_CHARS = 256

Scalar = str | int | float | bool

_TEXTS = ("source", "title", "media_type")
_TIMES = ("created_at", "updated_at")
_GROUPS = ("all", "any", "not")
_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_OPERATORS = ("eq", "in", *_COMPARISONS, "prefix", "exists")
_FIELDS = "metadata.<key>, source, title, media_type, created_at or updated_at"
_A_DATE = "an ISO 8601 date or date-time, such as 2026-01-31 or 2026-01-31T12:00:00Z"

# Regular expressions that Python and PostgreSQL read alike: no \d, which is wider than ten digits in both.
_DAY = "(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_MINUTES = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_SECONDS = ":[0-5][0-9](?:[.][0-9]{1,6})?"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-4])(?::[0-5][0-9])?)"
_DATE = re.compile(f"{_DAY}(?:[T ]{_MINUTES}(?:{_SECONDS})?{_ZONE}?)?")

_DATE_FORMS: tuple[tuple[str, str, bool], ...] = (
    # what a text looks like; the template for it ("": one that PostgreSQL knows by itself); whether it names its zone
    (f"^{_DAY}(?:[T ]{_MINUTES}{_SECONDS})?$", "", False),
    (f"^{_DAY}[T ]{_MINUTES}{_SECONDS}{_ZONE}$", "", True),
    (f"^{_DAY}T{_MINUTES}$", 'yyyy-mm-dd"T"HH24:MI', False),
    (f"^{_DAY} {_MINUTES}$", "yyyy-mm-dd HH24:MI", False),
    (f"^{_DAY}T{_MINUTES}{_ZONE}$", 'yyyy-mm-dd"T"HH24:MITZ', True),
    (f"^{_DAY} {_MINUTES}{_ZONE}$", "yyyy-mm-dd HH24:MITZ", True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """The value is one of these, in type and value; a text is never a number, 1 is 1.0."""

    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartsWith:
    """The value is a text that begins so, letter case included."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """The value is a number, or a text that is a date, on this side of the bound."""

    operator: str
    """`>`, `>=`, `<` or `<=`."""
    bound: int | float | datetime
    """A time is in UTC."""


@dataclass(frozen=True, slots=True)
class Present:
    """There is a value, and it is not null."""


Test = OneOf | StartsWith | Compare | Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One and the same value at `path` passes all `tests`."""

    path: tuple[str, ...]
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class All:
    """Each part holds; without parts, every document."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf:
    """At least one part holds; without parts, no document."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """The part does not hold."""

    part: Filter


Filter = Condition | All | AnyOf | Not


def parse_filter(value: object) -> Filter:
    """Return the filter that `value`, decoded JSON, stands for; `{}` is every document.

    Raises:
        InvalidInput: It is no filter or too large. The message says where and what was expected, and quotes no value.
    """
    found = All(parts=()) if value == {} else _group(value, "filter", MAX_DEPTH)
    conditions = list(_conditions(found))
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidInput(f"filter: at most {MAX_CONDITIONS} conditions")
    values = [value for condition in conditions for test in condition.tests for value in _values(test)]
    if len(values) > MAX_VALUES:
        raise InvalidInput(f"filter: at most {MAX_VALUES} values in all conditions together")
    if sum(len(value) for value in values if isinstance(value, str)) > MAX_TEXT_CHARS:
        raise InvalidInput(f"filter: at most {MAX_TEXT_CHARS} characters in all values together")
    return found


def to_jsonpath(found: Filter) -> str:
    """Return the predicate for `record @@ predicate`, which is true or false for every record, never null or an error.

    The text is ASCII, and canonical: filters that differ in the order of their parts or values have the same, so that
    it can be part of a cache's key. Every value in it is a literal, quoted as JSON.
    """
    match found:
        case Condition():
            tests = sorted({_jsonpath_test(test, found.path) for test in found.tests})
            path = "".join(f".{_quoted(key)}" for key in found.path)
            return f"exists(${path} ? ({' && '.join(tests)}))"
        case Not():
            return f"!({to_jsonpath(found.part)})"
        case All():
            return _joined(" && ", "1 == 1", found.parts)
        case AnyOf():
            return _joined(" || ", "1 == 0", found.parts)


def _joined(operator: str, empty: str, parts: Sequence[Filter]) -> str:
    texts = sorted({to_jsonpath(part) for part in parts})
    return operator.join(f"({text})" for text in texts) if len(texts) > 1 else (texts or [empty])[0]


def _jsonpath_test(test: Test, path: tuple[str, ...]) -> str:
    # The check of the type comes first and decides: a comparison would unwrap an array once more.
    match test:
        case OneOf():
            equal = sorted({f"@ == {_literal(value)}" for value in test.values})
            return f'@.type() != "array" && ({" || ".join(equal)})'
        case StartsWith():
            return f'@.type() == "string" && @ starts with {_quoted(test.text)}'
        case Present():
            return '@.type() != "null"'
        case Compare():
            if isinstance(test.bound, datetime):
                return _jsonpath_date(test.operator, test.bound, own=path[0] in _TIMES)
            return f'@.type() == "number" && @ {test.operator} {_literal(test.bound)}'


def _jsonpath_date(operator: str, bound: datetime, *, own: bool) -> str:
    """Compare as text where the form is ours, else by the form that the text has.

    NOTE: the expression before each `&&` is no shortcut. A time with a zone compared with one without is an error that
    `@@` does not suppress; for a text, `like_regex` is true or false, and false ends the conjunction.
    """
    utc = bound.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    if own:
        return f"@ {operator} {_quoted(utc + 'Z')}"
    forms: list[str] = []
    for pattern, template, zoned in _DATE_FORMS:
        value = f"@.datetime({_quoted(template)})" if template else "@.datetime()"
        limit = _quoted(utc + "+00:00" if zoned else utc)
        forms.append(f"(@ like_regex {_quoted(pattern)} && {value} {operator} {limit}.datetime())")
    return f'@.type() == "string" && ({" || ".join(forms)})'


def _literal(value: Scalar) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value, allow_nan=False)


def _quoted(text: str) -> str:
    """Return a jsonpath string; its escapes are a superset of JSON's."""
    return json.dumps(text, ensure_ascii=True)


def _conditions(found: Filter) -> Iterator[Condition]:
    match found:
        case Condition():
            yield found
        case Not():
            yield from _conditions(found.part)
        case All() | AnyOf():
            for part in found.parts:
                yield from _conditions(part)


def _values(test: Test) -> Sequence[Scalar | datetime]:
    match test:
        case OneOf():
            return test.values
        case StartsWith():
            return (test.text,)
        case Compare():
            return (test.bound,)
        case Present():
            return ()


def _group(value: object, where: str, depth: int) -> Filter:
    """Read one object: a condition, or groups and shorthands, each of which must hold."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: must be an object")
    given = cast("Mapping[str, object]", value)
    if "field" in given:
        return _condition(given, where)
    if depth == 0:
        raise InvalidInput(f"{where}: nested deeper than {MAX_DEPTH} levels")
    parts = [part for key, inner in given.items() for part in _entry(key, inner, where, depth - 1)]
    if not parts:
        raise InvalidInput(f"{where}: must not be empty")
    return parts[0] if len(parts) == 1 else All(parts=tuple(parts))


def _entry(key: str, inner: object, where: str, depth: int) -> list[Filter]:
    if key == "not":
        return [Not(part=_group(inner, f"{where}.not", depth))]
    if key in _GROUPS:
        if not isinstance(inner, list) or not inner:
            raise InvalidInput(f"{where}.{key}: must be a list of at least one filter")
        items = enumerate(cast("list[object]", inner))
        parts = tuple(_group(item, f"{where}.{key}[{number}]", depth) for number, item in items)
        return [All(parts=parts) if key == "all" else AnyOf(parts=parts)]
    if key == "metadata":
        if not isinstance(inner, Mapping) or not inner:
            raise InvalidInput(f"{where}.metadata: must be an object of at least one key and the value that it equals")
        pairs = cast("Mapping[str, object]", inner).items()
        return [_equals(("metadata", _key(name, f"{where}.metadata")), of, f"{where}.metadata") for name, of in pairs]
    if key in _TEXTS:
        return [_equals((key,), inner, f"{where}.{key}")]
    raise InvalidInput(
        f"{where}: has a key that is none of all, any, not, metadata, source, title, media_type; "
        'a condition is {"field": "metadata.<key>", "eq": ...}'
    )


def _equals(path: tuple[str, ...], value: object, where: str) -> Condition:
    return Condition(path=path, tests=(OneOf(values=(_scalar(value, path, where),)),))


def _condition(given: Mapping[str, object], where: str) -> Filter:
    path = _path(given["field"], f"{where}.field")
    operators = {key: value for key, value in given.items() if key != "field"}
    if not operators or not operators.keys() <= set(_OPERATORS):
        raise InvalidInput(f"{where}: beside field there must be one or more of {', '.join(_OPERATORS)}, nothing else")
    if "exists" in operators:
        return _exists(path, operators, where)
    return Condition(
        path=path, tests=tuple(_test(key, value, path, f"{where}.{key}") for key, value in operators.items())
    )


def _exists(path: tuple[str, ...], operators: Mapping[str, object], where: str) -> Filter:
    wanted = operators["exists"]
    if not isinstance(wanted, bool) or len(operators) > 1 or path[0] != "metadata":
        raise InvalidInput(f"{where}.exists: must be true or false, alone, and about a field in metadata")
    present = Condition(path=path, tests=(Present(),))
    return present if wanted else Not(part=present)


def _test(operator: str, value: object, path: tuple[str, ...], where: str) -> Test:
    if operator in _COMPARISONS:
        return Compare(operator=_COMPARISONS[operator], bound=_bound(value, path, where))
    if operator == "prefix":
        if path[0] in _TIMES or not isinstance(value, str):
            raise InvalidInput(f"{where}: must be a text, about a field that holds text")
        return StartsWith(text=_text(value, where))
    if operator == "eq":
        return OneOf(values=(_scalar(value, path, where),))
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{where}: must be a list of at least one value")
    values = cast("list[object]", value)
    if len(values) > MAX_VALUES:
        raise InvalidInput(f"{where}: at most {MAX_VALUES} values")
    return OneOf(values=tuple(_scalar(one, path, f"{where}[{number}]") for number, one in enumerate(values)))


def _path(field: object, where: str) -> tuple[str, ...]:
    keys = field.split(".") if isinstance(field, str) else field
    if not isinstance(keys, list) or not keys:
        raise InvalidInput(f"{where}: must be {_FIELDS}")
    path = [_key(key, where) for key in cast("list[object]", keys)]
    if path[0] == "metadata" and len(path) > 1:
        if len(path) - 1 > MAX_KEYS:
            raise InvalidInput(f"{where}: at most {MAX_KEYS} keys below metadata")
        return tuple(path)
    if path[0] in (*_TEXTS, *_TIMES) and len(path) == 1:
        return tuple(path)
    raise InvalidInput(f"{where}: must be {_FIELDS}")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidInput(f"{where}: a key must be a text of 1 to {MAX_KEY_CHARS} characters")
    return _text(key, where)


def _scalar(value: object, path: tuple[str, ...], where: str) -> Scalar:
    if path[0] in _TIMES:
        raise InvalidInput(f"{where}: a time is compared by gt, gte, lt and lte")
    if isinstance(value, str):
        return _text(value, where)
    if path[0] in _TEXTS:
        raise InvalidInput(f"{where}: must be a text")
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value, where)
    raise InvalidInput(
        f"{where}: must be a text, a number, true or false; for one of several values use in, for a missing one exists"
    )


def _bound(value: object, path: tuple[str, ...], where: str) -> int | float | datetime:
    if path[0] in _TEXTS:
        raise InvalidInput(f"{where}: {path[0]} has no order; use eq, in or prefix")
    if isinstance(value, int | float) and not isinstance(value, bool) and path[0] not in _TIMES:
        return _number(value, where)
    found = _instant(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInput(f"{where}: must be {'' if path[0] in _TIMES else 'a number or '}{_A_DATE}")
    return found


def _instant(text: str) -> datetime | None:
    """Return the time in UTC: without a zone it is in UTC, a date is its first moment."""
    if _DATE.fullmatch(text) is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _number(value: float, where: str) -> int | float:
    """Return the number in the one form that equal numbers share.

    The bounds of whole numbers are those of the JSON that documents come in; a longer one equals nothing stored.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidInput(f"{where}: a whole number must fit into 64 bits")
    if not math.isfinite(value):
        raise InvalidInput(f"{where}: must be a finite number")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def _text(value: str, where: str) -> str:
    if len(value) > MAX_STRING_CHARS:
        raise InvalidInput(f"{where}: a text has at most {MAX_STRING_CHARS} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{where}: has NUL characters or lone surrogates, which no text here can hold")
    return value

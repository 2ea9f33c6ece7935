"""What verbs that hand over files share: times on the command line, a file that is whole or not there, cells of CSV.

Above: `audit`, `budget`, `usage`. Below: nothing of ours.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import click

from rag.errors import InvalidInput

__all__ = ["MOMENT", "csv_line", "new_file"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, or for white space before one."""


class _Moment(click.ParamType[Any]):
    """A date or a time, in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            self.fail("not of the form 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


MOMENT = _Moment()


@contextmanager
def new_file(output: Path | None) -> Generator[TextIO]:
    """Open a file to write into, which only its owner can read; it appears under its name once it is whole. None:
    standard output.

    Raises:
        InvalidInput: There is such a file.
    """
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    if output.exists():
        raise InvalidInput(f"{output} exists; name a new file")
    part = output.with_name(f"{output.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


def csv_line(values: Iterable[object]) -> str:
    """Return a line of CSV; text that a spreadsheet would calculate gets an apostrophe in front of it."""
    line = StringIO()
    csv.writer(line).writerow([_cell(value) for value in values])
    return line.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list):
        value = " ".join(str(one) for one in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

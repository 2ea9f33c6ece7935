"""SQL as files: migrations, named queries and bootstrap scripts, read from this folder without any database driver.

The lowest room of the house: `rag.db` and the domain packages are above, nothing is below.

A query file `queries/<domain>.sql` holds blocks of this form; `{name}` marks a bound parameter, numbered in order
of first use, so that a query can be read as SQL and never be built from strings:

    -- get_document
    -- One document of the caller's tenant.
    select ... where document_id = {document_id};
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Migration", "Query", "bootstrap_script", "load_queries", "migrations", "schema_file"]

_ROOT = Path(__file__).parent
_BLOCK = re.compile(r"^-- (?P<name>[a-z][a-z0-9_]*)\n(?P<description>(?:-- .*\n)+)", re.MULTILINE)
_PARAMETER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_MIGRATION = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One named statement: `text` with `$1..$n`, and the parameter names in that order."""

    name: str
    description: str
    text: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered step of the schema; `sha256` is of its text and never changes once applied."""

    version: int
    name: str
    text: str
    sha256: str


@cache
def load_queries(domain: str) -> dict[str, Query]:
    """Return the named queries of `queries/<domain>.sql`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Two blocks have one name, or the file has no block.
    """
    text = (_ROOT / "queries" / f"{domain}.sql").read_text(encoding="utf-8")
    heads = list(_BLOCK.finditer(text))
    queries: dict[str, Query] = {}
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : following.start() if following else len(text)].strip().rstrip(";")
        name = head["name"]
        if name in queries:
            raise ValueError(f"queries/{domain}.sql has two blocks named {name}")
        order = tuple(dict.fromkeys(_PARAMETER.findall(body)))
        numbered = _PARAMETER.sub(lambda match, order=order: f"${order.index(match[1]) + 1}", body)
        description = " ".join(line[3:] for line in head["description"].splitlines())
        queries[name] = Query(name=name, description=description, text=numbered, parameters=order)
    if not queries:
        raise ValueError(f"queries/{domain}.sql holds no query")
    return queries


@cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations in order.

    Raises:
        ValueError: A file is misnamed, or the numbers are not 1, 2, 3 and so on.
    """
    found: list[Migration] = []
    for path in sorted((_ROOT / "migrations").glob("*.sql")):
        match = _MIGRATION.match(path.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise ValueError(f"migrations/{path.name}: expected {len(found) + 1:04}_verb_what.sql")
        text = path.read_text(encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append(Migration(version=int(match[1]), name=match[2], text=text, sha256=digest))
    return tuple(found)


def bootstrap_script(name: str) -> str:
    """Return `bootstrap/<name>.sql`, which an administrator runs before the first migration."""
    return (_ROOT / "bootstrap" / f"{name}.sql").read_text(encoding="utf-8")


def schema_file() -> Path:
    """Return where the checked-in dump of the whole schema stands."""
    return _ROOT / "schema.sql"

"""Files become documents here; a broken one is refused by itself, in a sentence its owner can act on.

Above it: the ingest of `rag.corpus` and the command line. Below it: `rag.corpus.text` and the format readers.
Pure: bytes and a file name in, values out. A call may hold its thread for seconds; run it in a worker thread.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

import orjson

from rag.corpus.metadata import check_metadata
from rag.corpus.text import Draft, clean_text, clean_title, decode, first_heading
from rag.errors import DocumentRefused

__all__ = [
    "EXTENSIONS",
    "MAX_FILE_BYTES",
    "ParsedDocument",
    "Refusal",
    "parse",
    "parse_many",
    "parse_text",
    "read_file",
]

MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_ID_CHARS = 200

_LINE_KEYS = frozenset({"id", "title", "text", "format", "metadata"})
_PLAIN, _MARKDOWN = "text/plain", "text/markdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedDocument:
    """One document, its text clean in the sense of `rag.corpus.text`."""

    title: str
    text: str
    media_type: str
    """Of the file that it came from."""
    markdown: bool
    """Whether `#` lines of `text` are headings: what `rag.corpus.chunk` asks."""
    source: str
    """The file name, with ` line N` for a document out of JSON lines."""
    encoding: str | None = None
    """What the bytes were decoded from. Anything but `utf-8` was declared by the file or guessed: tell its owner."""
    external_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One document that was not taken in."""

    source: str
    reason: str


def read_file(path: Path) -> bytes:
    """Read a file, refusing one that is too large before reading it.

    Raises:
        DocumentRefused: Not a regular file, not readable, or larger than `MAX_FILE_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DocumentRefused("not a regular file")
        _check_size(status.st_size)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise DocumentRefused(f"cannot be read: {exc.strerror}") from exc
    # Again, because the file may have grown since.
    _check_size(len(data))
    return data


def parse(data: bytes, *, name: str) -> ParsedDocument:
    """Parse a file that is one document.

    Raises:
        DocumentRefused: With what is wrong and what would help.
    """
    extension, form = _format(name)
    if form is _JSON_LINES:
        raise DocumentRefused(f"a {extension} file holds many documents; it is read line by line")
    _check_size(len(data))
    draft = _read(form, data)
    text = clean_text(draft.text)
    heading = first_heading(text) if draft.markdown else None
    title = clean_title(heading) or clean_title(draft.title) or clean_title(PurePosixPath(name).stem) or "Untitled"
    return ParsedDocument(
        title=title,
        text=text,
        media_type=form.media_type,
        markdown=draft.markdown,
        source=name,
        encoding=draft.encoding,
    )


def parse_text(text: str, *, title: str | None = None, markdown: bool, source: str = "text") -> ParsedDocument:
    """Make a document of text that came without a file.

    Raises:
        DocumentRefused: The text cannot be stored (see `rag.corpus.text.clean_text`).
    """
    text = clean_text(text)
    found = clean_title(title) or (clean_title(first_heading(text)) if markdown else None) or clean_title(source)
    return ParsedDocument(
        title=found or "Untitled",
        text=text,
        media_type=_MARKDOWN if markdown else _PLAIN,
        markdown=markdown,
        source=source,
    )


def parse_many(data: bytes, *, name: str) -> Iterator[ParsedDocument | Refusal]:
    """Parse a file of any format; every document that cannot be taken in is one `Refusal`, and the rest goes on."""
    try:
        _, form = _format(name)
        if form is not _JSON_LINES:
            yield parse(data, name=name)
            return
        _check_size(len(data))
    except DocumentRefused as exc:
        yield Refusal(source=name, reason=exc.message)
        return
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        source = f"{name} line {number}"
        try:
            yield _parse_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, source=source)
        except DocumentRefused as exc:
            yield Refusal(source=source, reason=exc.message)


def _parse_line(line: bytes, *, source: str) -> ParsedDocument:
    try:
        value: object = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise DocumentRefused("the line is not valid JSON") from exc
    if not isinstance(value, dict):
        raise DocumentRefused("the line is not a JSON object")
    entry = cast("dict[str, Any]", value)
    unknown = sorted(entry.keys() - _LINE_KEYS)
    if unknown:
        raise DocumentRefused(f"the key {unknown[0][:40]!r} is not known: put it under 'metadata'")
    if "text" not in entry:
        raise DocumentRefused("the key 'text' is missing")
    texts = {key: entry.get(key) for key in ("text", "title", "id", "format")}
    for key, found in texts.items():
        if found is not None and not isinstance(found, str):
            raise DocumentRefused(f"the key {key!r} must hold a string")
    if texts["format"] not in {None, "text", "markdown"}:
        raise DocumentRefused("the key 'format' must be 'text' or 'markdown'")
    document = parse_text(
        texts["text"] or "", title=texts["title"], markdown=texts["format"] == "markdown", source=source
    )
    return ParsedDocument(
        title=document.title,
        text=document.text,
        media_type=document.media_type,
        markdown=document.markdown,
        source=source,
        encoding="utf-8",
        external_id=_checked_id(texts["id"]),
        metadata=_checked_metadata(entry.get("metadata")),
    )


def _checked_id(found: str | None) -> str | None:
    if found is not None and (not found.strip() or len(found) > MAX_ID_CHARS or re.search(r"[\x00-\x1f\x7f]", found)):
        raise DocumentRefused(f"the key 'id' must be 1 to {MAX_ID_CHARS} printable characters")
    return found


def _checked_metadata(found: object) -> Mapping[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DocumentRefused("the key 'metadata' must hold an object")
    metadata = cast("dict[str, Any]", found)
    check_metadata(metadata)
    return metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    media_type: str
    read: Callable[[bytes], Draft]


def _read(form: _Format, data: bytes) -> Draft:
    if not data.strip():
        raise DocumentRefused("the file is empty")
    try:
        return form.read(data)
    except DocumentRefused:
        raise
    except Exception as exc:  # a reader of hostile bytes may raise anything; the other files must go on
        raise DocumentRefused(f"the file is damaged or not what its name says ({form.media_type})") from exc


def _read_text(data: bytes) -> Draft:
    decoded = decode(data)
    return Draft(text=decoded.text, markdown=False, encoding=decoded.encoding)


def _read_markdown(data: bytes) -> Draft:
    decoded = decode(data)
    return Draft(text=decoded.text, markdown=True, encoding=decoded.encoding)


# The three readers' libraries take half a second to import, which only a process that ingests such a file should pay.


def _read_html(data: bytes) -> Draft:
    from rag.corpus.formats.html import read_html  # noqa: PLC0415

    return read_html(data)


def _read_pdf(data: bytes) -> Draft:
    from rag.corpus.formats.pdf import read_pdf  # noqa: PLC0415

    return read_pdf(data)


def _read_docx(data: bytes) -> Draft:
    from rag.corpus.formats.docx import read_docx  # noqa: PLC0415

    return read_docx(data)


_DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_TEXT_FORMAT = _Format(media_type=_PLAIN, read=_read_text)
_MARKDOWN_FORMAT = _Format(media_type=_MARKDOWN, read=_read_markdown)
_HTML_FORMAT = _Format(media_type="text/html", read=_read_html)
_JSON_LINES = _Format(media_type="application/jsonl", read=_read_text)
_FORMATS: Mapping[str, _Format] = {
    ".md": _MARKDOWN_FORMAT,
    ".markdown": _MARKDOWN_FORMAT,
    ".txt": _TEXT_FORMAT,
    ".text": _TEXT_FORMAT,
    ".html": _HTML_FORMAT,
    ".htm": _HTML_FORMAT,
    ".pdf": _Format(media_type="application/pdf", read=_read_pdf),
    ".docx": _Format(media_type=_DOCX, read=_read_docx),
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
}
EXTENSIONS = frozenset(_FORMATS)
"""The file name endings that are taken in, lower case, with the dot."""


def _format(name: str) -> tuple[str, _Format]:
    extension = PurePosixPath(name).suffix.lower()
    form = _FORMATS.get(extension)
    if form is None:
        raise DocumentRefused(f"files ending in {extension[:20]!r} are not read; known: {', '.join(sorted(_FORMATS))}")
    return extension, form


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DocumentRefused(f"the file has {size / 2**20:,.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB")

"""Bytes become clean text here: what every format reader stands on, and what the chunker may rely on afterwards.

Above it: `rag.corpus.parse` and the readers in `rag.corpus.formats`. Below it: only the errors.

Clean text is NFC, its lines end in a line feed, it has no byte order mark, no NUL and no lone surrogate (PostgreSQL
and UTF-8 take neither), some character that is not white space, and at most `MAX_TEXT_CHARS` characters.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import charset_normalizer

from rag.errors import DocumentRefused

__all__ = [
    "MAX_TEXT_CHARS",
    "MAX_TITLE_CHARS",
    "Decoded",
    "Draft",
    "Heading",
    "clean_text",
    "clean_title",
    "decode",
    "first_heading",
    "headings",
]

MAX_TEXT_CHARS = 4_000_000
"""Longest text of one document, in characters: about 1300 printed pages, some 5000 chunks."""
MAX_TITLE_CHARS = 300

_DETECT_BYTES = 256 * 1024
"""The encoding is guessed from this much: the guess costs seconds per megabyte, and more bytes do not change it."""
_MIN_COHERENCE = 0.5
"""Below this share of letters in the order of a known language, several encodings read as well: that is a guess."""
_MAX_CONTROL_SHARE = 0.01
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f]")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_ATX = re.compile(r" {0,3}(?P<level>#{1,6})[ \t](?P<rest>[^\n]*)")
_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^\n]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Text out of bytes, and the encoding that was found in them."""

    text: str
    encoding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a format reader hands up: text that is not yet clean."""

    text: str
    markdown: bool
    title: str | None = None
    encoding: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """One heading of a Markdown text."""

    start: int
    """Where its line begins, in characters."""
    level: int
    words: str


def decode(data: bytes, *, declared: str | None = None) -> Decoded:
    """Decode `data`: by its byte order mark, as UTF-8, as `declared`, or by a confident guess, in this order.

    Raises:
        DocumentRefused: The bytes are binary, or no text in an encoding that can be told with confidence.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return Decoded(text=_strict(data, encoding), encoding=encoding.removesuffix("-sig"))
    if b"\x00" in data:
        raise DocumentRefused("the content is binary (it has NUL bytes), not text")
    for encoding in ("utf-8", declared):
        try:
            if encoding is not None:
                return Decoded(text=data.decode(encoding), encoding=codecs.lookup(encoding).name)
        except (UnicodeDecodeError, LookupError):
            continue
    encoding = _guess(data[:_DETECT_BYTES])
    return Decoded(text=_strict(data, encoding), encoding=encoding)


def clean_text(text: str) -> str:
    """Return `text` as this module's docstring defines clean.

    Raises:
        DocumentRefused: It is empty, too long, binary, or has characters that no stored text may have.
    """
    # The length is checked before the costly steps as well: NFC shortens and lengthens only by a small factor.
    if len(text) > 2 * MAX_TEXT_CHARS:
        raise DocumentRefused(_too_long(len(text)))
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text:
        raise DocumentRefused("the text has NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise DocumentRefused("the text has lone surrogates, which no encoding can store") from exc
    text = unicodedata.normalize("NFC", text)
    if not text.strip():
        raise DocumentRefused("the document has no text")
    if len(text) > MAX_TEXT_CHARS:
        raise DocumentRefused(_too_long(len(text)))
    if len(_CONTROL.findall(text)) > _MAX_CONTROL_SHARE * len(text) + 1:
        raise DocumentRefused("the content is binary (control characters), not text")
    return text


def clean_title(title: str | None) -> str | None:
    """Return `title` on one line, at most `MAX_TITLE_CHARS` long, or None when nothing is left of it."""
    if title is None:
        return None
    printable = "".join(c if unicodedata.category(c) not in {"Cc", "Cs"} else " " for c in title[: 4 * MAX_TITLE_CHARS])
    line = " ".join(unicodedata.normalize("NFC", printable).split())
    return (line if len(line) <= MAX_TITLE_CHARS else line[: MAX_TITLE_CHARS - 1] + "…") or None


def headings(markdown: str) -> Iterator[Heading]:
    """Yield the lines of one to six `#` (ATX headings) that stand outside fenced code, in order."""
    fence = ""
    for line in _LINE.finditer(markdown):
        fenced = _FENCE.match(line[0])
        if fence:
            if fenced and fenced["mark"].startswith(fence) and not fenced["info"].strip():
                fence = ""
        elif fenced and not (fenced["mark"][0] == "`" and "`" in fenced["info"]):
            fence = fenced["mark"]
        elif (match := _ATX.match(line[0])) and (words := _heading_words(match["rest"])):
            yield Heading(start=line.start(), level=len(match["level"]), words=words)


def first_heading(markdown: str) -> str | None:
    """Return the words of the first heading, if there is one."""
    return next((heading.words for heading in headings(markdown)), None)


def _heading_words(rest: str) -> str:
    words = " ".join(rest.split())
    before, _, last = words.rpartition(" ")
    return before if last and not last.strip("#") else words


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise DocumentRefused(f"the bytes are not valid {encoding}; save the file as UTF-8") from exc


def _guess(sample: bytes) -> str:
    best = charset_normalizer.from_bytes(sample).best()
    if best is None or best.chaos > 0 or best.coherence < _MIN_COHERENCE or best.encoding.startswith("utf_"):
        raise DocumentRefused("the bytes are not UTF-8 and their encoding cannot be told; save the file as UTF-8")
    # These encodings read the sample alike; the commonest of them is the likeliest for what follows it.
    return "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding


def _too_long(length: int) -> str:
    return f"the text has {length:,} characters; the limit is {MAX_TEXT_CHARS:,}: split the document"

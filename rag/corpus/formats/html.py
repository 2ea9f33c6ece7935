"""HTML to Markdown text: headings, paragraphs, lists and table rows, without what no reader of the page would read.

Above it: `rag.corpus.parse`. Below it: lxml's HTML parser, which has no external entities and is told to stay offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module without stubs

from rag.corpus.text import MAX_TEXT_CHARS, Draft, decode
from rag.errors import DocumentRefused

__all__ = ["read_html"]

_DROPPED = frozenset(
    {
        "audio",
        "button",
        "canvas",
        "datalist",
        "dialog",
        "embed",
        "head",
        "iframe",
        "input",
        "math",
        "nav",
        "noscript",
        "object",
        "script",
        "select",
        "style",
        "svg",
        "template",
        "textarea",
        "video",
    }
)
_BLOCKS = frozenset(
    {
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "tr",
        "ul",
    }
)
_CELLS = frozenset({"td", "th"})
_SPACE = re.compile(r"\s+")
_DECLARED = re.compile(rb"""charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
_DECLARED_WITHIN = 2048
"""Where a page must declare its encoding; the HTML standard says within the first 1024 bytes."""


def read_html(data: bytes) -> Draft:
    """Read a page.

    Raises:
        DocumentRefused: The encoding cannot be told, or it is nested too deeply, too long or empty.
    """
    declared = _DECLARED.search(data[:_DECLARED_WITHIN])
    decoded = decode(data, declared=declared[1].decode("ascii") if declared else None)
    # Encoded again, because lxml refuses a str that carries an encoding declaration of its own.
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=True)
    root = etree.fromstring(decoded.text.encode("utf-8", "replace"), parser)
    # The parser gives up at a depth of 2048, in silence: what follows would be missing from the text.
    if parser.error_log.filter_from_level(etree.ErrorLevels.FATAL):
        raise DocumentRefused("the HTML is nested too deeply or too large to be read whole")
    if root is None:
        raise DocumentRefused("the document has no text")
    title = root.findtext(".//title")
    blocks: list[str] = []
    length = 0
    for block in _blocks(root):
        blocks.append(block)
        length += len(block)
        if length > MAX_TEXT_CHARS:
            raise DocumentRefused(f"the page has more than {MAX_TEXT_CHARS:,} characters of text: split it")
    return Draft(text="\n\n".join(blocks), markdown=True, title=title, encoding=decoded.encoding)


def _blocks(root: Any) -> Iterator[str]:
    """Yield the text of each block in reading order, with its Markdown prefix."""
    pieces: list[str] = []
    prefix = ""
    preformatted = 0
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        tag = str(element.tag)
        opening = event == "start"
        if opening and (tag in _DROPPED or element.get("hidden") is not None):
            walker.skip_subtree()
            continue
        if tag in _BLOCKS:
            block = _finish(prefix, pieces, preformatted=preformatted > 0)
            if block:
                yield block
                prefix = ""
            pieces.clear()
            preformatted += (1 if opening else -1) if tag == "pre" else 0
            if opening:
                prefix = _prefix(tag) or prefix
            elif tag == "li" or _level(tag):
                prefix = ""
        elif tag == "br" and opening:
            pieces.append("\n")
        elif tag in _CELLS and opening and any(piece.strip() for piece in pieces):
            pieces.append(" | ")
        words = element.text if opening else element.tail
        if words:
            pieces.append(words if preformatted else _SPACE.sub(" ", words))


def _finish(prefix: str, pieces: list[str], *, preformatted: bool) -> str:
    text = "".join(pieces)
    if preformatted:
        return f"```\n{text.strip(chr(10))}\n```" if text.strip() else ""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    body = (" " if prefix.startswith("#") else "\n").join(line for line in lines if line)
    return prefix + body if body else ""


def _level(tag: str) -> int:
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0


def _prefix(tag: str) -> str:
    if tag == "li":
        return "- "
    level = _level(tag)
    return "#" * level + " " if level else ""

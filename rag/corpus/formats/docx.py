"""DOCX to Markdown text: headings, paragraphs, list items and table rows in reading order.

Above it: `rag.corpus.parse`. Below it: python-docx, whose XML parser does not resolve entities.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from docx import Document
from docx.oxml.ns import qn

from rag.corpus.text import Draft
from rag.errors import DocumentRefused

__all__ = ["MAX_DOCX_PARTS", "MAX_DOCX_UNPACKED_BYTES", "MAX_DOCX_XML_BYTES", "read_docx"]

MAX_DOCX_UNPACKED_BYTES = 128 * 1024 * 1024
"""Sum of all parts unpacked. zipfile reads no more of a part than its declared size, so the declared sizes bind."""
MAX_DOCX_XML_BYTES = 32 * 1024 * 1024
"""Sum of the XML parts unpacked: the tree of a part takes some ten times its size in memory."""
MAX_DOCX_PARTS = 10_000

_PARAGRAPH, _TABLE, _ROW, _CELL, _TEXT = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc"), qn("w:t")
_CONTROL, _CONTROL_CONTENT = qn("w:sdt"), qn("w:sdtContent")
_MARKS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_ITEM = "- "
_OLE = b"\xd0\xcf\x11\xe0"


def read_docx(data: bytes) -> Draft:
    """Read a Word document.

    Raises:
        DocumentRefused: It is protected or an old .doc, or it unpacks to more than the bounds.
    """
    if data.startswith(_OLE):
        raise DocumentRefused("the file is protected by a password or an old .doc; save it as an open .docx")
    _check_size(data)
    document = Document(io.BytesIO(data))
    prefixes = {style.style_id: _prefix(style.name or "") for style in document.styles}
    body: Any = document.element.body
    # A drawing may come twice, the second time for old readers.
    for repeated in list(body.iter(_FALLBACK)):
        repeated.getparent().remove(repeated)
    blocks = [block for element in _items(body) if (block := _block(element, prefixes))]
    return Draft(text="\n\n".join(blocks), markdown=True, title=document.core_properties.title)


def _check_size(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
    xml = sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels")))
    total = sum(part.file_size for part in parts)
    if len(parts) > MAX_DOCX_PARTS or total > MAX_DOCX_UNPACKED_BYTES or xml > MAX_DOCX_XML_BYTES:
        raise DocumentRefused("the file unpacks to more than a document may hold (a zip bomb?)")


def _items(container: Any) -> Iterator[Any]:
    """Yield paragraphs and tables in reading order, those inside content controls with them."""
    for child in container.iterchildren():
        if child.tag in {_PARAGRAPH, _TABLE}:
            yield child
        elif child.tag == _CONTROL:
            for content in child.iterchildren(_CONTROL_CONTENT):
                yield from _items(content)


def _block(element: Any, prefixes: Mapping[str, str]) -> str:
    if element.tag == _TABLE:
        rows = ([_words(cell) for cell in row.iterchildren(_CELL)] for row in element.iterchildren(_ROW))
        return "\n".join(" | ".join(cells) for cells in rows if any(cells))
    text = _text(element).strip()
    prefix = prefixes.get(element.style or "", "")
    if prefix.startswith("#"):
        text = " ".join(text.split())
    elif element.pPr is not None and element.pPr.numPr is not None:
        prefix = _ITEM
    return prefix + text if text else ""


def _words(cell: Any) -> str:
    return " ".join(" ".join(_text(paragraph) for paragraph in cell.iter(_PARAGRAPH)).split())


def _text(paragraph: Any) -> str:
    """Return the words as they read with all tracked changes accepted: deleted runs hold no `w:t`."""
    return "".join(node.text or "" if node.tag == _TEXT else _MARKS.get(node.tag, "") for node in paragraph.iter())


def _prefix(style: str) -> str:
    if style.startswith("List"):
        return _ITEM
    number = "1" if style == "Title" else style.removeprefix("Heading ")
    return "#" * min(int(number), 6) + " " if style != number and number.isdecimal() else ""

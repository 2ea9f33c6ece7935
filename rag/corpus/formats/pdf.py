"""PDF to plain text, page by page, within bounds of pages, characters and time.

Above it: `rag.corpus.parse`. Below it: pypdf, whose own limits bound what one stream may unpack to.
"""

from __future__ import annotations

import io
import logging
import time

from pypdf import PasswordType, PdfReader

from rag.corpus.text import MAX_TEXT_CHARS, Draft
from rag.errors import DocumentRefused

__all__ = ["MAX_PDF_PAGES", "MAX_PDF_SECONDS", "read_pdf"]

MAX_PDF_PAGES = 3000
MAX_PDF_SECONDS = 120.0
"""Looked at between pages: a long book takes some tens of seconds, a file made to waste time is given up."""

# pypdf reports each oddity of a file, with pieces of its content, which no log of ours may hold.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


def read_pdf(data: bytes) -> Draft:
    """Read the text layer of a PDF.

    Raises:
        DocumentRefused: It needs a password, has no text layer, is too long, or takes too long.
    """
    reader = PdfReader(io.BytesIO(data), strict=False)
    # Many files are encrypted with an empty user password: anyone may open them, and so may we.
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise DocumentRefused("the PDF is protected by a password; save it without one")
    pages = len(reader.pages)
    if pages > MAX_PDF_PAGES:
        raise DocumentRefused(f"the PDF has {pages:,} pages; the limit is {MAX_PDF_PAGES:,}: split it")
    until = time.monotonic() + MAX_PDF_SECONDS
    texts: list[str] = []
    length = 0
    for page in reader.pages:
        text = page.extract_text().replace("\x00", "").strip()
        length += len(text)
        if length > MAX_TEXT_CHARS:
            raise DocumentRefused(f"the PDF has more than {MAX_TEXT_CHARS:,} characters of text: split it")
        if time.monotonic() > until:
            raise DocumentRefused(f"the PDF takes longer than {MAX_PDF_SECONDS:.0f} seconds to read: split it")
        if text:
            texts.append(text)
    if not texts:
        raise DocumentRefused("the PDF has no text layer (a scan?); run text recognition over it first")
    title = reader.metadata.title if reader.metadata is not None else None
    return Draft(text="\n\n".join(texts), markdown=False, title=title)

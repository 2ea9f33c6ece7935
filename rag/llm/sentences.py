"""Sentences as spans of a text, and the words that tell what a sentence is about.

Above it: the extractive answerer and the check of citations. Below it: sentencex, called on one block at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sentencex import get_sentence_boundaries  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs

__all__ = ["MAX_SENTENCE_CHARS", "content_words", "sentence_spans"]

MAX_SENTENCE_CHARS = 600
"""Statutes have sentences of pages; longer ones are cut at a semicolon, a comma or a space."""

_BLOCK = re.compile(r"[^\n]+(?:\n(?![ \t]*\n| {0,3}#{1,6}[ \t])[^\n]+)*")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]")
_WORD = re.compile(r"\w[\w'’-]*")
_STOP_WORDS = frozenset(
    """a about all also an and any are as at be been but by can could did do does for from had has have how if in into
    is it its may must no nor not of on or other our shall should so such than that the their them then there these they
    this those to under until upon was we were what when where whether which who whom whose why will with would you
    your""".split()  # noqa: SIM905  # a list of words reads better as text
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each sentence in order, trimmed, headings left out, none over `MAX_SENTENCE_CHARS`."""
    spans: list[tuple[int, int]] = []
    for block in _BLOCK.finditer(text):
        start = block.start()
        if _HEADING.match(block[0]):
            _, newline, body = block[0].partition("\n")
            if not newline:
                continue
            start = block.end() - len(body)
        for boundary in get_sentence_boundaries("en", text[start : block.end()]):
            left, right = start + boundary["start_index"], start + boundary["end_index"]
            spans.extend(_trimmed(text, cut) for cut in _cuts(text, left, right) if text[cut[0] : cut[1]].strip())
    return spans


def content_words(text: str) -> frozenset[str]:
    """Return the words of `text` in lower case, without those that say nothing of its subject."""
    return frozenset(word for word in _WORD.findall(text.lower()) if len(word) > 1 and word not in _STOP_WORDS)


def _cuts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > MAX_SENTENCE_CHARS:
        limit = start + MAX_SENTENCE_CHARS
        for border in ("; ", ", ", " "):
            found = text.rfind(border, start + MAX_SENTENCE_CHARS // 4, limit - len(border))
            if found >= 0:
                limit = found + len(border)
                break
        yield start, limit
        start = limit
    yield start, end


def _trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    words = text[span[0] : span[1]]
    return span[0] + len(words) - len(words.lstrip()), span[0] + len(words.rstrip())

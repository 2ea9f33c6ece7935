"""Two texts side by side: which sections belong together, which sentences stayed, changed, moved, or are in one only.

Above: `compare_graph`. Below: `rag.corpus.text` (headings), `rag.llm.sentences`. Pure; on long texts it holds its
thread for a second: run it in a worker thread. Every quote is a span of the text that it was given, to the character.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from rag.corpus.text import headings
from rag.llm.sentences import sentence_spans

__all__ = ["MAX_CHANGES", "Text", "align", "quoted", "words_changed"]

MAX_CHANGES = 100
"""Of one pair of texts, that are quoted; all are counted."""
SAME_TOPIC = 0.5
"""Share of words that two sentences, or sections, have in common, from which on one is a change of the other."""
WINDOW = 20
"""A changed sentence is looked for this far from where it would stand."""
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")
_SECTION = " › "


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A document as it was read."""

    document_id: str
    source: str
    title: str
    version: int
    markdown: bool
    text: str
    characters: int
    """Of the whole document; `text` may be its beginning only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sentence:
    start: int
    end: int
    words: tuple[str, ...]
    """What makes two sentences the same: all of it but the white space between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    heading: str
    sentences: tuple[_Sentence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    section: str
    base: _Sentence | None
    other: _Sentence | None
    moved: bool = False


def align(base: Text, other: Text) -> dict[str, Any]:
    """Return what `other` has in common with `base` and what not: counts, a line for each section, and the changes.

    Of the changes, in the order of the texts, the first MAX_CHANGES are quoted; `left_out` counts the others.
    """
    rows: list[dict[str, Any]] = []
    changes: list[_Change] = []
    same = 0
    for one, two in _matched(_sections(base), _sections(other)):
        heading = (one or two or _NOTHING).heading
        kept, found = _sentences_compared(heading, one or _NOTHING, two or _NOTHING)
        same += kept
        changes += found
        rows.append(
            {
                "base": one.heading if one else None,
                "other": two.heading if two else None,
                "same": kept,
                **_counts(found),
            }
        )
    changes = _with_moves(changes)
    return {
        "base": base.document_id,
        "other": other.document_id,
        "same": same,
        **_counts(changes),
        "moved": sum(change.moved for change in changes),
        "sections": rows,
        "changes": [_shown(change, base, other) for change in changes[:MAX_CHANGES]],
        "left_out": max(0, len(changes) - MAX_CHANGES),
    }


def quoted(text: Text, start: int, end: int) -> dict[str, Any]:
    """Return `text[start:end]` as a citation: whose words they are, of which version, and where they stand."""
    quote = text.text[start:end]
    return {
        "document_id": text.document_id,
        "source": text.source,
        "title": text.title,
        "version": text.version,
        "start": start,
        "end": end,
        "quote": quote,
        "quote_sha256": hashlib.sha256(quote.encode()).hexdigest(),
        "verified": True,
    }


def words_changed(before: str, after: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Return both texts in pieces, each with whether it is in the other one as well (False) or not (True)."""
    left, right = _TOKEN.findall(before), _TOKEN.findall(after)
    one: list[tuple[bool, str]] = []
    two: list[tuple[bool, str]] = []
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for pieces, words in ((one, left[a:b]), (two, right[c:d])):
            if words:
                pieces.append((kind != "equal", "".join(words)))
    return one, two


_NOTHING = _Section(heading="", sentences=())


def _sections(text: Text) -> list[_Section]:
    """Return the sections that say something; a heading with nothing under it stands in the paths of those below it."""
    found = ((heading, tuple(_sentences(text.text, start, end))) for heading, start, end in _cut(text))
    return [_Section(heading=heading, sentences=sentences) for heading, sentences in found if sentences]


def _cut(text: Text) -> Iterator[tuple[str, int, int]]:
    """Yield each section's headings, outermost first, and the span of what stands under them."""
    start, path = 0, list[tuple[int, str]]()
    for heading in headings(text.text) if text.markdown else ():
        yield _SECTION.join(words for _, words in path), start, heading.start
        line = text.text.find("\n", heading.start)
        start = line + 1 if line >= 0 else len(text.text)
        path = [*((level, words) for level, words in path if level < heading.level), (heading.level, heading.words)]
    yield _SECTION.join(words for _, words in path), start, len(text.text)


def _sentences(text: str, start: int, end: int) -> Iterator[_Sentence]:
    """Yield the sentences of a span, and whatever stands between them: every word is in one."""
    at = start
    for left, right in [(start + left, start + right) for left, right in sentence_spans(text[start:end])] + [
        (end, end)
    ]:
        if text[at:left].strip():  # what a Markdown reader may take for a heading, and is none here
            lead = len(text[at:left]) - len(text[at:left].lstrip())
            yield _sentence(text, at + lead, at + len(text[at:left].rstrip()))
        if right > left:
            yield _sentence(text, left, right)
        at = right


def _sentence(text: str, start: int, end: int) -> _Sentence:
    return _Sentence(start=start, end=end, words=tuple(_TOKEN.findall(" ".join(text[start:end].split()))))


def _matched(base: Sequence[_Section], other: Sequence[_Section]) -> list[tuple[_Section | None, _Section | None]]:
    """Return the sections in pairs: by their headings with those above, by their own, by their words; then those left.

    The order is that of `base`; what only `other` has comes where it stands there, after what precedes it.
    """
    pairs: dict[int, int] = {}
    _match_by_name(_paths(base), _paths(other), pairs)
    _match_by_name(_names(base), _names(other), pairs)
    _match_by_words(base, other, pairs)
    found: list[tuple[_Section | None, _Section | None]] = []
    taken = set(pairs.values())
    left = deque(number for number in range(len(other)) if number not in taken)
    for number, section in enumerate(base):
        partner = pairs.get(number)
        while partner is not None and left and left[0] < partner:
            found.append((None, other[left.popleft()]))
        found.append((section, None if partner is None else other[partner]))
    return found + [(None, other[number]) for number in left]


def _paths(sections: Sequence[_Section]) -> list[str]:
    return [" ".join(section.heading.lower().split()) for section in sections]


def _names(sections: Sequence[_Section]) -> list[str]:
    return [path.rpartition(_SECTION)[2] for path in _paths(sections)]


def _match_by_name(base: Sequence[str], other: Sequence[str], pairs: dict[int, int]) -> None:
    """Add pairs of the same name; where several have it, in their order."""
    taken = set(pairs.values())
    free: defaultdict[str, deque[int]] = defaultdict(deque)
    for number, name in enumerate(other):
        if number not in taken:
            free[name].append(number)
    for number, name in enumerate(base):
        if number not in pairs and free[name]:
            pairs[number] = free[name].popleft()


def _match_by_words(base: Sequence[_Section], other: Sequence[_Section], pairs: dict[int, int]) -> None:
    """Add pairs of sections that were renamed: the nearest in words, near where they would stand."""
    taken = set(pairs.values())
    free = [number for number in range(len(other)) if number not in taken]
    bags = {number: _bag(other[number].sentences) for number in free}
    for number, section in enumerate(base):
        if number in pairs or not free:
            continue
        bag = _bag(section.sentences)
        likeness, best = max((_likeness(bag, bags[at]), -at) for at in free[: 2 * WINDOW])
        if likeness >= SAME_TOPIC:
            pairs[number] = -best
            free.remove(-best)


def _sentences_compared(heading: str, base: _Section, other: _Section) -> tuple[int, list[_Change]]:
    """Return how many sentences are the same, and what changed, in order."""
    left, right = base.sentences, other.sentences
    matcher = SequenceMatcher(None, [one.words for one in left], [one.words for one in right])
    same, changes = 0, list[_Change]()
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            same += b - a
        else:
            changes += _paired(heading, left[a:b], right[c:d])
    return same, changes


def _paired(heading: str, left: Sequence[_Sentence], right: Sequence[_Sentence]) -> Iterator[_Change]:
    """Yield the sentences that stand in each other's place: each with the one that it became, or alone."""
    bags = [_bag([one]) for one in right]
    partners: dict[int, int] = {}
    taken: set[int] = set()
    for number, sentence in enumerate(left):
        about = number * len(right) // len(left)
        near = range(max(0, about - WINDOW), min(len(right), about + WINDOW + 1))
        bag = _bag([sentence])
        likeness, best = max(((_likeness(bag, bags[at]), -at) for at in near if at not in taken), default=(0.0, 0))
        if likeness >= SAME_TOPIC:
            partners[number] = -best
            taken.add(-best)
    for number, sentence in enumerate(left):
        at = partners.get(number)
        yield _Change(section=heading, base=sentence, other=None if at is None else right[at])
    for number, sentence in enumerate(right):
        if number not in taken:
            yield _Change(section=heading, base=None, other=sentence)


def _with_moves(changes: Sequence[_Change]) -> list[_Change]:
    """Return the changes with a sentence that left one place and came in another as one that moved."""
    came: defaultdict[tuple[str, ...], deque[int]] = defaultdict(deque)
    for number, change in enumerate(changes):
        if change.base is None and change.other is not None:
            came[change.other.words].append(number)
    gone: set[int] = set()
    found: dict[int, _Change] = {}
    for number, change in enumerate(changes):
        if change.other is None and change.base is not None and came[change.base.words]:
            at = came[change.base.words].popleft()
            gone.add(at)
            found[number] = _Change(section=change.section, base=change.base, other=changes[at].other, moved=True)
    return [found.get(number, change) for number, change in enumerate(changes) if number not in gone]


def _counts(changes: Sequence[_Change]) -> dict[str, int]:
    kinds = Counter(_kind(change) for change in changes)
    return {kind: kinds[kind] for kind in ("changed", "only_base", "only_other")}


def _kind(change: _Change) -> str:
    if change.moved:
        return "moved"
    if change.other is None:
        return "only_base"
    return "changed" if change.base is not None else "only_other"


def _shown(change: _Change, base: Text, other: Text) -> dict[str, Any]:
    one, two = change.base, change.other
    return {
        "kind": _kind(change),
        "section": change.section,
        "base": None if one is None else quoted(base, one.start, one.end),
        "other": None if two is None else quoted(other, two.start, two.end),
    }


def _bag(sentences: Sequence[_Sentence]) -> Counter[str]:
    return Counter(word.lower() for sentence in sentences for word in sentence.words if _WORD.match(word))


def _likeness(one: Mapping[str, int], two: Mapping[str, int]) -> float:
    """Return the share of words that two bags have in common (Dice's coefficient)."""
    total = sum(one.values()) + sum(two.values())
    return 2 * sum(min(count, two.get(word, 0)) for word, count in one.items()) / total if total else 0.0

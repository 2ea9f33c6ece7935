"""What the benchmarks search: sections of the United States Code, and volume made out of their words.

Above: `loading` and the benchmarks. Below: the product's own cleaning and chunking. Nothing is downloaded: the path
comes from `--uscode`, a gzipped file of one JSON object a line (id, title, collection, chapter, text), public domain.
Everything random is seeded, so that two runs search the same texts for the same words.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rag.corpus.chunk import chunk
from rag.corpus.text import clean_text, clean_title

__all__ = ["Piece", "Section", "questions", "read_uscode", "split", "synthetic_sections", "words_by_frequency"]

SEED = 20_260_728
TITLE_WORDS = 6
_WORD = re.compile(r"[A-Za-z]{3,}")
_EMPTY_WORDS = frozenset(
    (
        "the",
        "and",
        "for",
        "with",
        "without",
        "not",
        "nor",
        "any",
        "all",
        "other",
        "under",
        "from",
        "into",
        "upon",
        "such",
        "that",
        "this",
        "which",
        "who",
        "whom",
        "whose",
        "etc",
        "are",
        "may",
        "shall",
        "has",
        "have",
        "had",
        "its",
        "his",
        "her",
        "their",
        "between",
        "within",
        "during",
        "before",
        "after",
    )
)
"""Words that nobody types into a search box to find a section by its title; the index has stop words of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A chunk, `text[start:end]` of its section."""

    start: int
    end: int
    heading: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One document, cut as `put_document` would cut it."""

    source: str
    title: str
    text: str
    pieces: tuple[Piece, ...]


def read_uscode(path: Path) -> list[Section]:
    """Return every section of the file, cleaned and cut by the product's own functions, in a seeded random order."""
    sections: list[Section] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            text = clean_text(entry["text"])
            pieces = tuple(
                Piece(start=piece.start, end=piece.end, heading=piece.heading, text=piece.text)
                for piece in chunk(text, markdown=True)
            )
            title = clean_title(entry["title"]) or entry["id"]
            sections.append(Section(source=f"{entry['id']}.md", title=title, text=text, pieces=pieces))
    random.Random(SEED).shuffle(sections)
    return sections


def split(sections: Sequence[Section], sizes: Sequence[int]) -> list[tuple[Section, ...]]:
    """Deal the sections out to tenants of `sizes` documents, disjoint; the last may get fewer than it asked for."""
    dealt: list[tuple[Section, ...]] = []
    first = 0
    for size in sizes:
        dealt.append(tuple(sections[first : first + size]))
        first += size
    return dealt


def questions(sections: Sequence[Section], count: int, *, seed: int = SEED) -> list[str]:
    """Return `count` queries of three to five words, each in the order of the title that they are drawn from."""
    draw = random.Random(seed)
    titles = [words for section in sections if len(words := _words(section.title)) >= 3]
    if not titles:
        raise ValueError("no title has three words to ask for")
    asked: list[str] = []
    while len(asked) < count:
        words = draw.choice(titles)
        wanted = min(len(words), draw.randint(3, 5))
        places = sorted(draw.sample(range(len(words)), wanted))
        asked.append(" ".join(words[place] for place in places))
    return asked


def _words(title: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(title)]
    return [word for word in dict.fromkeys(words) if word not in _EMPTY_WORDS]


def synthetic_sections(
    ranked: Sequence[str],
    chunks: int,
    *,
    words: tuple[int, int] = (40, 120),
    chunks_a_document: int = 10,
    seed: int = SEED,
) -> Iterator[Section]:
    """Yield documents of `chunks_a_document` chunks until there are `chunks`, each of so many words of `ranked`.

    Words are drawn by Zipf's law (the n-th of `ranked` with probability proportional to 1/n), stop words among them, as
    in running text.
    """
    draw = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(1, len(ranked) + 1))
    number = made = 0
    while made < chunks:
        lengths = draw.integers(*words, size=min(chunks_a_document, chunks - made), endpoint=True).tolist()
        places = np.searchsorted(weights, weights[-1] * draw.random(TITLE_WORDS + sum(lengths)), side="right")
        drawn = iter([str(ranked[place]) for place in places.tolist()])
        title = " ".join(islice(drawn, TITLE_WORDS))
        texts = [" ".join(islice(drawn, length)) for length in lengths]
        yield _section(f"synthetic-{number:07}.txt", f"{title} {number}", texts)
        number += 1
        made += len(texts)


def words_by_frequency(sections: Sequence[Section]) -> list[str]:
    """Return every word of three letters or more in the sections' text, the most frequent first."""
    counts: Counter[str] = Counter()
    for section in sections:
        counts.update(word.lower() for word in _WORD.findall(section.text))
    return sorted(counts, key=lambda word: (-counts[word], word))


def _section(source: str, title: str, texts: Sequence[str]) -> Section:
    pieces: list[Piece] = []
    start = 0
    for text in texts:
        pieces.append(Piece(start=start, end=start + len(text), heading="", text=text))
        start += len(text) + 2
    return Section(source=source, title=title, text="\n\n".join(texts), pieces=tuple(pieces))

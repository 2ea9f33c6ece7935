"""Chunks are spans of the text: bounded, in order, and nothing but white space is left out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.corpus.chunk import MAX_CHUNK_CHARS, Chunk, chunk

SAMPLES = Path(__file__).parents[2] / "samples"

HOSTILE_PIECES = st.sampled_from(
    [
        "😀",
        "👨‍👩‍👧",
        "שלום עולם ",
        "e\u0301\u0323",
        "\n",
        "\n\n",
        " ",
        "\u2028",
        "\x1c",
        "\u200b",
        "# ",
        "## a\n",
        "```\n",
        "~~~\n",
        "- ",
        "> ",
        "|a|b|\n",
        "|-|-|\n",
        "word. ",
        "x" * 1500,
        "。",
        "\t",
        "#######",
        "[a](b)",
        "<div>",
        "\r",
        "§ 78j. ",
    ]
)
hostile_texts = st.lists(HOSTILE_PIECES, max_size=60).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=3000
)


def assert_sound(text: str, chunks: list[Chunk]) -> None:
    assert [c.number for c in chunks] == list(range(len(chunks)))
    assert all(text[c.start : c.end] == c.text for c in chunks)
    assert all(0 < len(c.text) <= MAX_CHUNK_CHARS and c.text == c.text.strip() for c in chunks)
    assert all(before.end <= after.start for before, after in pairwise(chunks))
    gaps = [0, *(edge for c in chunks for edge in (c.start, c.end)), len(text)]
    assert all(not text[start:end].strip() for start, end in zip(gaps[::2], gaps[1::2], strict=True))


@given(hostile_texts, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_is_covered_by_bounded_ordered_verbatim_spans(text: str, markdown: bool) -> None:
    assert_sound(text, chunk(text, markdown=markdown))


@pytest.mark.parametrize("markdown", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "\n" * 100_000,
        "e" + "\u0301" * 100_000,
        "👨‍👩‍👧" * 30_000,
        "# a\n" * 25_000,
        "# " + " " * 100_000 + "x",
        "# " + "# " * 50_000,
        "[" * 50_000,
        "> " * 50_000,
        "word " * 100_000,
    ],
    ids=["unbroken", "newlines", "combining", "emoji", "headings", "spaces", "hashes", "brackets", "quotes", "words"],
)
@pytest.mark.timeout(20)
def test_a_hostile_text_ends_within_the_bound(text: str, markdown: bool) -> None:
    assert_sound(text, chunk(text, markdown=markdown))


def test_white_space_alone_has_no_chunks() -> None:
    assert chunk(" \n\t\u2003\n", markdown=True) == []


def test_a_chunk_names_the_headings_that_it_stands_under() -> None:
    body = "The quick brown fox jumps over the lazy dog. " * 12
    text = f"# Act\n\n{body}\n\n## (a) Scope\n\n{body}\n\n### (1) Detail\n\n{body}\n\n## (b) Reports\n\n{body}"
    assert [c.heading for c in chunk(text, markdown=True)] == [
        "Act",
        "Act › (a) Scope",
        "Act › (a) Scope › (1) Detail",
        "Act › (b) Reports",
    ]


def test_short_sections_share_a_chunk_under_the_heading_that_they_share() -> None:
    text = "# Act\n\nIntroduction.\n\n## (a)\n\nOne.\n\n## (b)\n\nTwo."
    (only,) = chunk(text, markdown=True)
    assert (only.text, only.heading) == (text, "Act")


def test_a_hash_line_in_fenced_code_is_no_heading() -> None:
    body = "All of this is text of some length, to fill the section. " * 10
    text = f"# Real\n\n{body}\n\n```sh\n# not a heading\n{body}\n```\n\n{body}"
    assert {c.heading for c in chunk(text, markdown=True)} == {"Real"}


def test_without_markdown_there_are_no_headings() -> None:
    assert [c.heading for c in chunk("# not a heading\n\n" + "word " * 300, markdown=False)] == ["", ""]


def test_a_long_section_is_cut_between_sentences() -> None:
    text = "# Act\n\n" + "Each report shall be filed within ten days of its receipt by the Commission. " * 60
    chunks = chunk(text, markdown=True)
    assert len(chunks) > 3
    assert chunks[0].text.startswith("# Act\n\nEach report")
    assert all(c.text.endswith(".") for c in chunks)


def test_every_sample_is_covered_and_stands_under_its_section_heading() -> None:
    files = sorted(SAMPLES.glob("*/*.md"))
    assert len(files) > 100
    for file in files:
        text = file.read_text(encoding="utf-8")
        chunks = chunk(text, markdown=True)
        assert_sound(text, chunks)
        title = " ".join(text.split("\n", 1)[0].removeprefix("# ").split())
        assert all(c.heading.startswith(title[:200]) for c in chunks), file.name

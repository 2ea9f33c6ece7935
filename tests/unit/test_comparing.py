"""Which sentences of two texts belong together: counts add up, quotes are spans, and long texts take no time."""

from __future__ import annotations

import random
import re
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rag.llm.sentences import sentence_spans
from workflows import comparing, comparison
from workflows.comparing import Text, align, quoted, words_changed

SENTENCES = [f"{word.capitalize()} {word} stands in sentence number {n}." for n, word in enumerate("abcdefgh")]


def _text(name: str, words: str, *, markdown: bool = True) -> Text:
    return Text(
        document_id=name, source=name, title=name, version=1, markdown=markdown, text=words, characters=len(words)
    )


def _kinds(pair: dict[str, Any]) -> list[tuple[str, str | None, str | None]]:
    return [
        (one["kind"], one["base"] and one["base"]["quote"], one["other"] and one["other"]["quote"])
        for one in pair["changes"]
    ]


PARTS = st.lists(st.lists(st.sampled_from(SENTENCES), max_size=5), max_size=5)


@given(PARTS, PARTS)
def test_every_sentence_is_counted_once_and_every_quote_is_a_span(one: list[list[str]], two: list[list[str]]) -> None:
    texts = [
        "\n\n".join(f"## Part {n}\n\n{' '.join(sentences)}" for n, sentences in enumerate(parts))
        for parts in (one, two)
    ]
    base, other = (_text(name, words) for name, words in zip("ab", texts, strict=True))
    pair = align(base, other)
    left, right = (len(sentence_spans(words)) for words in texts)
    assert left == pair["same"] + pair["changed"] + pair["moved"] + pair["only_base"]
    assert right == pair["same"] + pair["changed"] + pair["moved"] + pair["only_other"]
    assert len(pair["changes"]) == sum(pair[kind] for kind in ("changed", "moved", "only_base", "only_other"))
    for change in pair["changes"]:
        for quote, words in ((change["base"], texts[0]), (change["other"], texts[1])):
            if quote is not None:
                assert words[quote["start"] : quote["end"]] == quote["quote"]


@given(PARTS)
def test_a_text_compared_to_itself_has_no_change(parts: list[list[str]]) -> None:
    words = "\n\n".join(f"# Part {n}\n\n{' '.join(sentences)}" for n, sentences in enumerate(parts))
    pair = align(_text("a", words), _text("b", words))
    assert (pair["changes"], pair["changed"]) == ([], 0)


def test_sections_belong_together_by_path_then_by_heading_then_by_words() -> None:
    base = "# Law\n\n## Fees\n\nThe fee is one percent of the price paid.\n\n# Old name\n\nNobody may sell on a Sunday."
    other = (
        "# Act\n\n## Fees\n\nThe fee is two percent of the price paid.\n\n# New name\n\nNobody may sell on a Sunday."
    )
    pair = align(_text("a", base), _text("b", other))
    matched = [(row["base"], row["other"]) for row in pair["sections"]]
    assert matched == [("Law › Fees", "Act › Fees"), ("Old name", "New name")]
    assert _kinds(pair) == [
        ("changed", "The fee is one percent of the price paid.", "The fee is two percent of the price paid.")
    ]


def test_a_sentence_that_went_to_another_section_has_moved() -> None:
    base = "# One\n\nThis stays here. The seal is kept by the clerk.\n\n# Two\n\nThat stays there."
    other = "# One\n\nThis stays here.\n\n# Two\n\nThat stays there. The seal is kept by the clerk."
    pair = align(_text("a", base), _text("b", other))
    assert (pair["moved"], pair["only_base"], pair["only_other"]) == (1, 0, 0)
    assert _kinds(pair) == [("moved", "The seal is kept by the clerk.", "The seal is kept by the clerk.")]


def test_white_space_is_no_change_and_letter_case_is_one() -> None:
    pair = align(_text("a", "The  party\nshall pay."), _text("b", "The party shall pay."))
    assert (pair["same"], pair["changed"]) == (1, 0)
    pair = align(_text("a", "The Party shall pay."), _text("b", "The party shall pay."))
    assert (pair["same"], pair["changed"]) == (0, 1)


def test_in_plain_text_a_number_sign_is_no_heading() -> None:
    pair = align(_text("a", "# 5 is due.", markdown=False), _text("b", "# 6 is due.", markdown=False))
    assert [row["base"] for row in pair["sections"]] == [""]
    assert _kinds(pair) == [("changed", "# 5 is due.", "# 6 is due.")]


def test_a_comment_within_code_is_no_heading_and_is_compared() -> None:
    fenced = "# Use\n\n```\n# set it to {}\nrun()\n```\n\nThat is all."
    pair = align(_text("a", fenced.format(1)), _text("b", fenced.format(2)))
    assert (pair["changed"], pair["only_base"], pair["only_other"]) == (1, 0, 0)
    assert "set it to 1" in pair["changes"][0]["base"]["quote"]


def test_of_many_changes_the_first_are_quoted_and_all_are_counted() -> None:
    base = " ".join(f"Alpha {n} beta gamma delta." for n in range(150))
    other = " ".join(f"Alpha {n} beta gamma epsilon." for n in range(150))
    pair = align(_text("a", base, markdown=False), _text("b", other, markdown=False))
    assert (pair["changed"], len(pair["changes"]), pair["left_out"]) == (150, comparing.MAX_CHANGES, 50)


def test_changed_words_are_told_from_those_that_stayed() -> None:
    before, after = words_changed("The fee is 5 percent.", "The fee is 7 percent.")
    assert before == [(False, "The fee is "), (True, "5"), (False, " percent.")]
    assert after == [(False, "The fee is "), (True, "7"), (False, " percent.")]


def test_the_longest_and_the_most_repetitive_texts_are_compared_within_seconds() -> None:
    chance = random.Random(7)
    words = [f"w{n}" for n in range(300)]

    def prose(sentences: int) -> str:
        return " ".join(" ".join(chance.choices(words, k=12)).capitalize() + "." for _ in range(sentences))

    cases = (
        (prose(3_500), prose(3_500), False),
        ("A b. C d. " * 20_000, "A b. A b. C d. C d. " * 10_000, False),
        ("".join(f"# h{n}\nx{n}.\n" for n in range(15_000)), "".join(f"# g{n}\ny{n}.\n" for n in range(15_000)), True),
    )
    for one, two, markdown in cases:
        began = time.monotonic()
        align(_text("a", one[:200_000], markdown=markdown), _text("b", two[:200_000], markdown=markdown))
        assert time.monotonic() - began < 20.0


def test_what_documents_say_cannot_break_the_tables() -> None:
    base = _text("a", "A pipe | and a slash \\| stand here.")
    other = _text("b", "A pipe | and a slash \\| stood here.")
    documents = [
        {"document_id": one.document_id, "source": "s|x", "title": "t", "version": 1, "characters": 9, "read": 9}
        for one in (base, other)
    ]
    data = {"documents": documents, "pairs": [align(base, other)], "summary": None, "aspects": [], "citations": []}
    rows = [line for line in comparison.markdown(data).splitlines() if line.startswith("|")]
    for row in rows:
        unescaped = row.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") in {4, 5, 6}
    assert any("stand~~" in row or "~~stand~~" in row for row in rows)


def test_what_documents_or_a_model_say_does_nothing_in_a_comparison() -> None:
    beacon = "![x](http://evil.example/a.png) <img src=x> for details see here."
    base, other = _text("a", f"Three months. {beacon}"), _text("b", f"Six months. {beacon.replace('here', 'there')}")
    documents = [
        {"document_id": one.document_id, "source": "s", "title": beacon, "version": 1, "characters": 9, "read": 9}
        for one in (base, other)
    ]
    cell = {"text": f"{beacon} [1]"}
    data = {
        "documents": documents,
        "pairs": [align(base, other)],
        "summary": {"text": f"[1]: http://evil.example\n{beacon}"},
        "aspects": [{"aspect": beacon, "cells": [cell, None]}],
        "citations": [{**quoted(base, 0, 5), "n": 1, "title": beacon}],
    }
    shown = comparison.markdown(data)
    assert "evil.example" in shown
    assert not re.search(r"(?<!\\)\]\(|<img|^\[\d+\]:", shown, re.MULTILINE)
    assert "here. [1] |" in shown

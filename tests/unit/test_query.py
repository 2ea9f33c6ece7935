"""A query's quoted phrases become patterns, its quotes disappear, and everything else stays as it was written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidInput
from rag.retrieval.query import MAX_PHRASE_CHARS, MAX_PHRASES, parse_query

FIXED = re.compile(r"\(\?<!\[\[:alnum:\]\]\)|\(\?!\[\[:alnum:\]\]\)|\[\^\[:alnum:\]\]\+")


def spelled(text: str) -> list[list[str]]:
    """Return the words of each phrase's pattern."""
    return [FIXED.sub(" ", pattern).split() for pattern in parse_query(text).phrases]


@pytest.mark.parametrize(
    ("text", "phrases", "words"),
    [
        ('"Smith v. Jones" appeal', [["Smith", "v", "Jones"]], "Smith v. Jones appeal"),
        ("“Smith v. Jones” appeal", [["Smith", "v", "Jones"]], "Smith v. Jones appeal"),
        ('“Smith v. Jones" appeal', [["Smith", "v", "Jones"]], "Smith v. Jones appeal"),
        ("„Smith“ und «Jones» oder »Meier«", [["Smith"], ["Jones"], ["Meier"]], "Smith und Jones oder Meier"),
        ("「東京都」の人口", [["東京都"]], "東京都 の人口"),
        ('東京"大阪"京都', [["大阪"]], "東京 大阪 京都"),
        ('"10b-5"', [["10b", "5"]], "10b-5"),
        ('"§ 78j(b)"', [["78j", "b"]], "§ 78j(b)"),
        ('"a" "b" "a"', [["a"], ["b"]], "a b a"),
        # not phrases: nothing changes
        ('an unbalanced " quote', [], 'an unbalanced " quote'),
        ('"a" and "b', [["a"]], 'a and "b'),
        ('pipes of 5" and 6" length', [], 'pipes of 5" and 6" length'),
        ('""', [], '""'),
        ('"§ — !" fee', [], '"§ — !" fee'),
        ('"🎉🎊"', [], '"🎉🎊"'),
        ("O'Brien's  fee", [], "O'Brien's  fee"),
        ("‘single’", [], "‘single’"),
        ("", [], ""),
    ],
)
def test_phrases_and_words(text: str, phrases: list[list[str]], words: str) -> None:
    assert spelled(text) == phrases
    assert parse_query(text).words == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"Smith v. Jones" appeal', "Smith Jones"),
        ('"10b-5"', "10b-5"),
        ('"the U.S. code" "tax"', "the code tax"),
        ("no phrase", ""),
    ],
)
def test_words_that_punctuation_touches_do_not_look_for_candidates_while_others_can(text: str, words: str) -> None:
    assert parse_query(text).phrase_words == words


def test_a_phrase_longer_than_the_limit_is_refused() -> None:
    assert parse_query('"' + "x" * MAX_PHRASE_CHARS + '"').phrases
    with pytest.raises(InvalidInput):
        parse_query('"' + "x" * (MAX_PHRASE_CHARS + 1) + '"')


def test_more_phrases_than_the_limit_are_refused() -> None:
    most = " ".join(f'"p{number}"' for number in range(MAX_PHRASES))
    assert len(parse_query(most).phrases) == MAX_PHRASES
    with pytest.raises(InvalidInput, match="more than 8 quoted phrases"):
        parse_query(f'{most} "one more"')


@given(st.text(st.characters() | st.sampled_from('"“”„«»「」 a1.'), max_size=60))
def test_a_pattern_holds_nothing_of_the_callers_but_letters_digits_and_marks(text: str) -> None:
    try:
        parsed = parse_query(text)
    except InvalidInput:
        return
    for pattern in parsed.phrases:
        rest = FIXED.sub("", pattern)
        assert rest
        assert not set(rest) & set(".^$*+?()[]{}|\\\"'#: \t\n\0")
    assert bool(text.strip()) == bool(parsed.words.strip())


@pytest.mark.timeout(5)
@pytest.mark.parametrize("piece", ['"', "“", "«", "»", "「", '"a', '" ', "«»", '"«', "“ "])
def test_thousands_of_quotes_around_nothing_are_text_and_take_no_time(piece: str) -> None:
    text = piece * (4000 // len(piece))
    assert parse_query(text).words == text

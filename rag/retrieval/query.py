"""What a query asks for literally: its quoted phrases, as patterns for `text ~* pattern`, beside its words.

Above: `search`. Below: only the errors. A phrase is found by its words in this order, as whole words, whatever
punctuation or white space stands between them: "O'Brien" finds O’Brien, "10b-5" finds 10b-5 and 10b 5, not 10b-51.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from rag.errors import InvalidInput

__all__ = ["MAX_PHRASES", "MAX_PHRASE_CHARS", "ParsedQuery", "parse_query"]

MAX_PHRASE_CHARS = 500
"""A phrase of 4 000 characters that nearly matches itself everywhere took 8 ms for each chunk."""
MAX_PHRASES = 8
"""Each is a regular expression over the text of every candidate."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana and Han. There every place may be a word's edge."""
_ENCLOSED = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")
"""Letters in circles and squares: symbols by their category, letters to PostgreSQL (Unicode's Alphabetic)."""
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_LETTER = f"[^\\W_{_UNSPACED}]"
_ANY_QUOTE = '"“”„‟＂'
_QUOTED = re.compile(
    # A straight quote after a letter or digit opens nothing, and before one closes nothing: 5" and 6" are inches.
    f'(?:(?<!{_LETTER})["＂]|[“”„‟])(?P<double>[^{_ANY_QUOTE}]*)(?:["＂](?!{_LETTER})|[“”‟])'
    "|«(?P<angle>[^«»]*)»|»(?P<turned>[^«»]*)«|「(?P<corner>[^「」]*)」|『(?P<white>[^『』]*)』"
)
_BETWEEN = "[^[:alnum:]]+"
_STARTS = "(?<![[:alnum:]])"
_ENDS = "(?![[:alnum:]])"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedQuery:
    """A query in its two roles."""

    words: str
    """The query without the quotes of its phrases; their words count for ranking like any other."""
    phrases: tuple[str, ...]
    """PostgreSQL regular expressions, each of which must match, in a locale that knows Unicode's letters, such as
    C.UTF-8. They are made of letters, digits, combining marks and fixed parts: nothing of a caller's is left to escape.
    """
    phrase_words: str
    """The phrases' words by whose postings candidates for a match are found. Those that punctuation touches are left
    out where others remain: the text may have them with other punctuation, and then indexed otherwise ("U.S." and
    "U. S.").
    """


def parse_query(text: str) -> ParsedQuery:
    """Split `text`, which is in NFC as stored texts are.

    A quote without its pair is text, and so are quotes around no letter or digit.

    Raises:
        InvalidInput: There are more than MAX_PHRASES phrases, or one is longer than MAX_PHRASE_CHARS.
    """
    phrases: dict[str, None] = {}
    inner_texts: list[str] = []

    def unquote(match: re.Match[str]) -> str:
        inner = next(group for group in match.groups() if group is not None)
        pattern = _pattern(inner)
        if pattern is None:
            return match[0]
        if len(inner) > MAX_PHRASE_CHARS:
            raise InvalidInput(f"a quoted phrase is at most {MAX_PHRASE_CHARS} characters long")
        phrases[pattern] = None
        inner_texts.append(_sure_words(inner))
        return f" {inner} "

    words = _QUOTED.sub(unquote, text)
    if len(phrases) > MAX_PHRASES:
        raise InvalidInput(f"the query has more than {MAX_PHRASES} quoted phrases")
    return ParsedQuery(
        words=" ".join(words.split()) if phrases else text, phrases=tuple(phrases), phrase_words=" ".join(inner_texts)
    )


def _pattern(phrase: str) -> str | None:
    words = _words(phrase)
    if not words:
        return None
    starts = "" if _IS_UNSPACED.match(words[0][0]) else _STARTS
    ends = "" if _IS_UNSPACED.match(words[-1][-1]) else _ENDS
    return starts + _BETWEEN.join(words) + ends


def _sure_words(phrase: str) -> str:
    sure = [word for word in phrase.split() if word.isalnum()]
    return " ".join(sure) if sure else phrase


def _words(phrase: str) -> list[str]:
    """Return the runs of letters, digits and combining marks; none where there is no letter or digit at all."""
    if not any(_kind(character) in "LN" for character in phrase):
        return []
    return "".join(character if _kind(character) in "LMN" else " " for character in phrase).split()


def _kind(character: str) -> str:
    return "L" if _ENCLOSED.match(character) else unicodedata.category(character)[0]

"""The profiles: reports whose sections are known beforehand, and what a sentence has to have to belong into one. Pure.

Above: `research_plan`, `research_writing`. Below: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["CUES", "FACETS", "Facet", "Profile"]

Profile: TypeAlias = Literal["company", "legal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """One section of a profile."""

    title: str
    asks: str = ""
    """What it asks about the caller's question; "": the question itself."""
    words: tuple[str, ...]
    """Added to the question, each makes a query."""
    cue: str = ""
    """Key in CUES."""


FACETS: Mapping[Profile, tuple[Facet, ...]] = {
    "legal": (
        Facet(title="Scope", words=("", "applies to")),
        Facet(
            title="Definitions",
            asks="What do the terms mean that matter here",
            words=("the term means", "definitions"),
            cue="definitions",
        ),
        Facet(
            title="Duties",
            asks="What must be done, and what must not",
            words=("shall must required", "unlawful prohibited"),
            cue="duties",
        ),
        Facet(
            title="Exceptions",
            asks="What is excepted or exempt",
            words=("exceptions exempt", "shall not apply"),
            cue="exceptions",
        ),
        Facet(
            title="Penalties",
            asks="What penalties and liability follow",
            words=("penalty liable", "violation fine imprisonment damages"),
            cue="penalties",
        ),
    ),
    "company": (
        Facet(title="Overview", words=("", "business products customers")),
        Facet(
            title="Competitors",
            asks="Who competes, and how",
            words=("competitors competition", "market share rivals"),
            cue="competitors",
        ),
        Facet(
            title="Financials",
            asks="What are the financial figures",
            words=("revenue profit margin", "cash flow debt earnings"),
            cue="financials",
        ),
        Facet(
            title="Regulation",
            asks="What rules and regulators apply",
            words=("regulation compliance", "regulator license supervision"),
            cue="regulation",
        ),
        Facet(
            title="Trends",
            asks="How is it developing",
            words=("trends growth outlook", "forecast expected future"),
            cue="trends",
        ),
    ),
}


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


CUES: Mapping[str, re.Pattern[str]] = {
    "definitions": _any(
        r"\bthe terms?\b",
        r"”,? (?:means|includes|shall mean)\b",
        r"\bmeans (?:an?|the|any|each|all|that)\b",
        r"”,? (?:or “[^”]{1,60}” )?is\b",
        r"\bis defined\b",
        r"\bas used in\b",
        r"\bdefinition of\b",
        r"\bhas the meaning\b",
    ),
    "duties": _any(
        # what a court or a reading of the law "shall" is no duty of anybody else
        r"\bshall\b(?! (?:not )?(?:apply|exceed"
        r"|be (?:construed|deemed|liable|fined|imprisoned|punished|subject|determined|diminished)))",
        r"\bmust\b",
        r"\brequired? to\b",
        r"\bmay not\b",
        r"\bunlawful\b",
        r"\bobligat",
        r"\bdut(?:y|ies)\b",
        r"\bprohibit",
    ),
    "exceptions": _any(
        r"\bexcept",
        r"\bunless\b",
        r"\bexempt",
        r"\bnotwithstanding\b",
        r"\b(?:shall|does|do) not apply\b",
        r"\bdoes not include\b",
        r"\bsafe harbor\b",
        r"\bnothing in this\b",
        r"\bshall (?:not )?be construed\b",
        r"\bshall not (?:be (?:liable|subject)|prohibit|prevent)\b",
    ),
    "penalties": _any(
        r"\bpenalt",
        r"\bfined?\b",
        r"\bimprison",
        r"\bliab(?:le|ility)\b",
        r"\bdamages\b",
        r"\binjuncti",
        r"\bpunish",
        r"\bforfeit",
        r"\bdisgorge",
        r"\brevo(?:ke|cation)",
        r"\bsanction",
        r"\bcivil action\b",
        r"\benforced? (?:by|under)\b",
    ),
    "competitors": _any(
        r"\bcompet(?:e|es|ing|itor|itors|ition|itive)\b",
        r"\brivals?\b",
        r"\bmarket share\b",
        r"\bpeers?\b",
        r"\balternatives? to\b",
    ),
    "financials": _any(
        r"\brevenues?\b",
        r"\bnet (?:income|sales|loss)\b",
        r"\bprofits?\b",
        r"\bmargins?\b",
        r"\bearnings\b",
        r"\bcash flows?\b",
        r"\bdebt\b",
        r"\bEBIT(?:DA)?\b",
        r"[$€£¥]\s?\d",
        r"\b(?:million|billion)\b",
        r"\bdividends?\b",
        r"\bassets\b",
    ),
    "regulation": _any(
        r"\bregulat",
        r"\bcomplian",
        r"\blicen[cs]",
        r"\bsupervis",
        r"\bauthorit(?:y|ies)\b",
        r"\bsanction",
        r"\bact\b",
        r"\blaws?\b",
        r"\brules?\b",
    ),
    "trends": _any(
        r"\btrends?\b",
        r"\bgr(?:ow|ew|owth|owing)\b",
        r"\bincreas",
        r"\bdecreas",
        r"\bdeclin",
        r"\bexpect",
        r"\bforecast",
        r"\boutlook\b",
        r"\bemerging\b",
        r"\bshift(?:s|ing)?\b",
        r"\bfuture\b",
    ),
}
"""Without such words a sentence belongs to another section, or to none."""

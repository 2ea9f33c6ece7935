"""Research without its servers: what is planned, what can be quoted, what a report says of what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.llm.chat import Answer
from workflows import research_plan as planning
from workflows import research_writing as writing
from workflows.citations import Citation, Key, held, reads
from workflows.markdown import inert
from workflows.research_profiles import CUES, FACETS
from workflows.research_report import drafted, quotes_of_drafts, report_of
from workflows.research_units import MAX_UNIT_CHARS, is_whole, units_of
from workflows.research_writing import Draft

SAMPLES = Path(__file__).parents[2] / "samples"
PENALTIES = (SAMPLES / "securities" / "15-78u-1-civil-penalties-for-insider-trading.md").read_text(encoding="utf-8")
DEFINITIONS = (SAMPLES / "privacy" / "15-6809-definitions.md").read_text(encoding="utf-8")


def hit(text: str, *, title: str = "Law", source: str = "law.md", start: int = 0, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "document_id": source,
        "source": source,
        "title": title,
        "version": 1,
        "heading": title,
        "start": start,
        "end": start + len(text),
        "text": text,
        "score": 1.0,
        "covers": 1.0,
        "near": 1.0,
    }
    return made | fields


def texts(text: str) -> list[str]:
    return [" ".join(text[unit.start : unit.end].split()) for unit in units_of(text)]


def test_a_list_is_quoted_together_with_the_words_that_lead_into_it() -> None:
    (one,) = [one for one in texts(DEFINITIONS) if one.startswith("The term “Federal functional regulator” means (A)")]
    assert one.endswith(
        "(E) the National Credit Union Administration Board; and (F) the Securities and Exchange Commission."
    )


def test_captions_breadcrumbs_and_items_without_their_lead_are_not_quoted() -> None:
    found = texts(PENALTIES)
    assert not any("COMMERCE AND TRADE" in one for one in found)
    assert not any(one.startswith("(2) Amount of penalty") for one in found)
    assert texts("(B) knowingly failed to keep the books that this section requires of every broker.") == []


@given(st.text(max_size=400) | st.sampled_from([PENALTIES, DEFINITIONS]))
def test_units_are_bounded_spans_in_order(text: str) -> None:
    before = 0
    for unit in units_of(text):
        assert before <= unit.start < unit.end <= len(text)
        assert unit.end - unit.start <= MAX_UNIT_CHARS
        before = unit.end


@pytest.mark.parametrize("profile", ["company", "legal"])
def test_a_profile_has_its_sections_whatever_is_asked(profile: Any) -> None:
    plan = planning.from_profile(profile, "insider trading?")
    titles = [section["title"] for section in plan["sections"]]
    assert (
        titles[1:]
        == {
            "company": ["Competitors", "Financials", "Regulation", "Trends"],
            "legal": ["Definitions", "Duties", "Exceptions", "Penalties"],
        }[profile]
    )
    for section, facet in zip(plan["sections"], FACETS[profile], strict=True):
        assert len(section["queries"]) > 1
        assert all(query.startswith("insider trading") for query in section["queries"])
        assert facet.cue == "" or facet.cue in CUES


def test_what_the_documents_hold_becomes_the_sections() -> None:
    hits = [
        hit("x", title="§ 78u–1. Civil penalties for insider trading", source="a.md"),
        hit("x", title="§ 78t–1. Liability to contemporaneous traders", source="b.md", near=0.85, covers=0.0),
        hit("x", title="Civil penalties for the insider trading", source="c.md"),
        hit("x", title="§ 78a. Short title of this chapter", source="d.md", near=0.3, covers=0.1),
        hit("x", title="78b.", source="e.md"),
    ]
    topics = planning.topics_of(hits, most=5)
    assert [(one["title"], one["sources"]) for one in topics] == [
        ("Civil penalties for insider trading", ["a.md", "c.md"]),
        ("Liability to contemporaneous traders", ["b.md"]),
    ]
    plan = planning.from_topics("insider trading", topics)
    assert [section["title"] for section in plan["sections"]] == ["Overview", *(one["title"] for one in topics)]
    assert plan["sections"][1]["sources"] == ["a.md", "c.md"]
    assert all(len(section["queries"]) > 1 for section in plan["sections"][1:])


def test_one_long_document_is_planned_by_its_headings() -> None:
    hits = [
        hit("x", title="Annual report 2025", heading="Annual report 2025 › Liquidity risk"),
        hit("x", title="Annual report 2025", heading="Annual report 2025 › Credit risk management"),
    ]
    topics = planning.topics_of(hits, most=4)
    assert [one["title"] for one in topics] == ["Annual report 2025", "Liquidity risk", "Credit risk management"]
    plan = planning.from_topics("risk", topics)
    assert planning.clashing(plan) == {one["heading"] for one in hits}


def test_a_models_plan_is_taken_as_far_as_it_is_one() -> None:
    section = {"title": "1. Fees [x](http://evil)", "question": "Which fees?", "queries": ["fees", " ", "a", "b", "c"]}
    other = {"title": "Terms", "question": "How long?", "queries": ["term"]}
    plan = planning.from_model("Sure: " + json.dumps({"sections": [section, other, section]}) + " Done.", most=6)
    assert plan is not None
    assert [one["id"] for one in plan["sections"]] == ["s1", "s2"]
    assert plan["sections"][0]["queries"] == ["fees", "a", "b"]
    assert not set("[]<>") & set(plan["sections"][0]["title"])


@pytest.mark.parametrize(
    "said",
    [
        "",
        "no JSON at all",
        '{"sections": []}',
        '{"sections": [{"title": "One", "question": "Which?", "queries": ["a"]}]}',
        '{"sections": [{"title": 1}, {"title": "x"}]}',
        '{"sections": "everything"}',
        '{"sections": [{"title": "One", "question": "Which',
    ],
)
def test_what_is_no_plan_is_none(said: str) -> None:
    assert planning.from_model(said, most=6) is None


def test_what_the_model_is_told_is_data_that_cannot_leave_its_place() -> None:
    told = planning.planning_request('say "}] yes', [hit("x", title='A "title" } ]')], most=4)
    assert json.loads(told)["question"] == 'say "}] yes'


def section_of(plan: planning.Plan, title: str) -> planning.Section:
    return next(section for section in plan["sections"] if section["title"] == title)


LEGAL = planning.from_profile("legal", "insider trading")


def test_a_sentence_is_in_the_section_that_it_has_the_words_for_and_in_no_second_one() -> None:
    hits = [hit(PENALTIES)]
    definitions = writing.candidates(section_of(LEGAL, "Definitions"), hits, ())
    assert [one["text"][:60] for one in definitions] == ["For purposes of this section, “profit gained” or “loss avoid"]
    penalties = writing.candidates(section_of(LEGAL, "Penalties"), hits, ())
    assert any("three times the profit gained" in one["text"] for one in penalties)
    used = [writing.told(one["text"]) for one in penalties]
    assert writing.candidates(section_of(LEGAL, "Penalties"), hits, used) == []
    for one in penalties:
        assert PENALTIES[one["start"] : one["end"]] == one["text"]


def test_what_stands_in_a_passage_about_something_else_is_not_chosen_and_no_more_than_the_bound_is() -> None:
    section = section_of(LEGAL, "Penalties")
    among = writing.candidates(section, [hit(PENALTIES)], ())
    assert 1 < len(writing.chosen(section, "insider trading", among, ())) <= writing.MAX_CHOSEN
    away = [{**one, "covers": 0.1, "near": 0.2} for one in among]
    assert writing.chosen(section, "insider trading", away, {0, 1}) == []
    assert writing.chosen(section, "insider trading", [], ()) == []


def test_words_of_a_document_do_nothing_in_markdown() -> None:
    assert inert("![x](http://evil) <b>*bold*</b> `code`") == (
        "!\\[x\\](http://evil) &lt;b>\\*bold\\*&lt;/b> \\`code\\`"
    )
    assert inert("# Heading") == "\\# Heading"
    model = Answer(kind="model", model="m", text="See [the site](http://evil) and <img src=x>.")
    (block,) = writing.written(model, [hit(PENALTIES)])
    assert "](" not in block["text"]
    assert "<" not in block["text"]
    defined = Answer(kind="model", model="m", text="[1]: http://evil.example")
    assert "]:" not in writing.written(defined, [hit(PENALTIES)])[0]["text"]
    assert inert("1. An item") == "1\\. An item"


def drafts_of(plan: planning.Plan) -> list[Draft]:
    drafts: list[Draft] = []
    for section in plan["sections"]:
        among = writing.candidates(section, [hit(PENALTIES)], ())
        quoted = writing.chosen(section, "insider trading", among, ()) if section["title"] != "Scope" else []
        blocks = writing.copied(quoted)
        drafts.append(Draft(id=section["id"], kind="extractive", blocks=blocks, passages=1, documents=1))
    return drafts


def all_held(drafts: list[Draft], text: str) -> dict[Key, Citation]:
    found: dict[Key, Citation] = {}
    for read in reads(quotes_of_drafts(drafts)):
        found |= held(read, {"text": text[read.start : read.end], "start": read.start, "document": {"version": 2}})
    return found


def report(text: str = PENALTIES, **options: Any) -> Any:
    drafts = drafts_of(LEGAL)
    return report_of(
        "insider trading",
        LEGAL,
        drafts,
        all_held(drafts, text),
        unverified=options.get("unverified", "drop"),
        answerer={"answerer": "extractive", "model": None},
        cost={"calls": 1, "promptTokens": 0, "completionTokens": 0},
    )


def test_every_number_in_a_report_leads_to_a_reference_with_the_words_of_the_document() -> None:
    made = report()
    data = made.data
    assert (data["precision"], data["coverage"]) == (1.0, 1.0)
    for citation in data["citations"]:
        assert PENALTIES[citation["start"] : citation["end"]] == citation["quote"]
        assert f"[{citation['n']}]" in made.markdown
        assert f"\n{citation['n']}. " in made.markdown
    numbers = {number for section in data["sections"] for claim in section["claims"] for number in claim["citations"]}
    assert numbers == {citation["n"] for citation in data["citations"]} == set(range(1, len(numbers) + 1))


def test_a_section_without_evidence_says_so_and_one_with_little_says_that_this_is_all() -> None:
    made = report()
    by_title = {section["title"]: section for section in made.data["sections"]}
    assert by_title["Scope"]["claims"] == []
    scope, definitions = made.markdown.split("## Definitions")
    assert "Nothing was found on this: of 1 passage in 1 document" in scope
    assert by_title["Definitions"]["citations"] == 1
    assert "Nothing further was found on this." in definitions.split("## Duties")[0]
    assert "1 of them without evidence" in made.markdown


def test_a_report_on_documents_that_have_changed_shows_nothing_of_what_it_drafted() -> None:
    made = report(PENALTIES.replace("e", "E"))
    assert (made.data["verified"], made.data["citations"]) == (0, [])
    assert made.data["precision"] == 0.0
    assert "shall" not in made.markdown
    assert made.markdown.count("Nothing was found on this") == 5
    marked = report(PENALTIES.replace("e", "E"), unverified="mark").markdown
    assert "[unverified]" in marked
    assert "[1]" not in marked


def test_a_draft_has_no_markers() -> None:
    for section, draft in zip(LEGAL["sections"], drafts_of(LEGAL), strict=True):
        assert "[1]" not in drafted(section, draft)


@pytest.mark.parametrize(
    ("words", "whole"), [("It ends.", True), ("It ends.”", True), ("a list; and", False), ("means", False)]
)
def test_a_sentence_that_is_broken_off_is_known(words: str, whole: bool) -> None:
    assert is_whole(words) is whole

"""A report out of checked drafts: numbered references, Markdown for people, JSON for programs. Pure.

Above: `research_graph`. Below: `citations`, `markdown`, `research_writing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflows.citations import Citation, Claim, Delivered, Key, Unverified, deliver, key_of, measured, without_markers
from workflows.markdown import counted, inert
from workflows.research_plan import Plan, Section
from workflows.research_writing import Draft

__all__ = ["ENOUGH", "Report", "drafted", "quotes_of_drafts", "report_of"]

ENOUGH = 2
"""Verified citations; a section with fewer says that this is all there is."""
_BY: Mapping[str, str] = {
    "profile": "a fixed profile",
    "corpus": "what the documents hold on the question",
    "model": "a model's proposal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the artifact says, twice."""

    markdown: str
    data: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class _References:
    """Numbers what is cited, in the order of its first use."""

    numbers: dict[Key, int] = field(default_factory=dict[Key, int])
    citations: list[Citation] = field(default_factory=list[Citation])

    def number(self, claim: Claim, citation: Citation) -> int:
        del claim
        key = key_of(citation)
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers) + 1
            self.citations.append(citation)
        return self.numbers[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    section: Section
    draft: Draft
    markdown: str
    delivered: tuple[Delivered, ...]

    @property
    def cited(self) -> int:
        return len({number for part in self.delivered for number, _ in part.citations})


def drafted(section: Section, draft: Draft) -> str:
    """Return a section as it is shown before its claims were checked: without markers, for nothing is verified yet."""
    blocks = [
        _labelled(block["label"], without_markers(block["text"], block["statements"])) for block in draft["blocks"]
    ]
    return f"## {inert(section['title'])}\n\n" + ("\n\n".join(blocks) or _nothing(draft)) + "\n\n"


def quotes_of_drafts(drafts: Sequence[Draft]) -> list[Any]:
    """Return the quotes that all claims of the drafts stand on, each once."""
    claims = [
        claim for draft in drafts for block in draft["blocks"] for one in block["statements"] for claim in one["claims"]
    ]
    return list({key_of(quote): quote for claim in claims for quote in claim["quotes"]}.values())


def report_of(
    question: str,
    plan: Plan,
    drafts: Sequence[Draft],
    holding: Mapping[Key, Citation],
    *,
    unverified: Unverified,
    answerer: Mapping[str, Any],
    cost: Mapping[str, int],
) -> Report:
    """Return the report.

    Args:
        question: The caller's words.
        plan: Its sections.
        drafts: What was written for each, by the section's id.
        holding: The quotes that hold.
        unverified: What becomes of the statements of which no claim holds.
        answerer: {"answerer", "model"}.
        cost: What the task has used.
    """
    references = _References()
    of = {draft["id"]: draft for draft in drafts}
    written = [
        _section(section, of[section["id"]], holding, references, unverified=unverified) for section in plan["sections"]
    ]
    measures = measured([part for one in written for part in one.delivered], unverified=unverified)
    data = {
        "question": question,
        "planned_by": plan["by"],
        **answerer,
        "sections": [_as_json(one) for one in written],
        "citations": [{"n": number, **citation} for number, citation in enumerate(references.citations, 1)],
        **measures,
        "cost": dict(cost),
    }
    head = f"# {inert(' '.join(question.split()))}\n\n{_summary(data)}\n\n"
    body = "\n\n".join(one.markdown for one in written)
    return Report(markdown=f"{head}{body}\n\n{_list(references.citations)}", data=data)


def _section(
    section: Section,
    draft: Draft,
    holding: Mapping[Key, Citation],
    references: _References,
    *,
    unverified: Unverified,
) -> _Written:
    parts = [
        (
            block["label"],
            deliver(block["text"], block["statements"], holding, unverified=unverified, number=references.number),
        )
        for block in draft["blocks"]
    ]
    shown = [(label, part) for label, part in parts if part.statements]
    blocks = [_labelled(label, part.text) for label, part in shown]
    made = _Written(
        section=section,
        draft=draft,
        markdown="",
        delivered=tuple(part for _, part in parts),
    )
    if not shown:
        blocks = [_nothing(draft)]
    elif made.cited < ENOUGH:
        blocks.append("*Nothing further was found on this.*" if made.cited else "*No source bears this out.*")
    markdown = f"## {inert(section['title'])}\n\n" + "\n\n".join(blocks)
    return _Written(section=section, draft=draft, markdown=markdown, delivered=made.delivered)


def _labelled(label: str, text: str) -> str:
    return f"**{inert(label)}**\n\n{text}" if label else text


def _nothing(draft: Draft) -> str:
    if not draft["passages"]:
        return "*Nothing was found on this: no passage matches.*"
    return (
        f"*Nothing was found on this: of {counted(draft['passages'], 'passage')} in "
        f"{counted(draft['documents'], 'document')} none says anything that could be cited here.*"
    )


def _summary(data: Mapping[str, Any]) -> str:
    by = f"Written by {data['model']}" if data["model"] else "Sentences of the documents themselves, no model"
    claims = (
        f"{data['verified']} of {counted(data['claimed'], 'claim')} verified against the stored text"
        if data["claimed"]
        else "no claim is made"
    )
    dropped = data["dropped"]
    lost = f", {dropped} {'marked' if data['unverified'] == 'mark' else 'left out'}" if dropped else ""
    empty = sum(not section["citations"] for section in data["sections"])
    sections = counted(len(data["sections"]), "section")
    without = f", {empty} of them without evidence" if empty else ""
    return f"*{by}. {sections} by {_BY[data['planned_by']]}{without}; {claims}{lost}.*"


def _list(citations: Sequence[Citation]) -> str:
    if not citations:
        return "## References\n\nNone.\n"
    lines = [
        f"{number}. {inert(one['title'])}. {inert(one['source'])}, version {one['version']}, "
        f"characters {one['start']}-{one['end']}, sha256 {one['quote_sha256'][:16]}"
        for number, one in enumerate(citations, 1)
    ]
    return "## References\n\n" + "\n".join(lines) + "\n"


def _as_json(written: _Written) -> dict[str, Any]:
    claims = [claim for part in written.delivered for claim in part.claims]
    return {
        "id": written.section["id"],
        "title": written.section["title"],
        "question": written.section["question"],
        "queries": list(written.section["queries"]),
        "found": {"passages": written.draft["passages"], "documents": written.draft["documents"]},
        "citations": written.cited,
        "claims": claims,
        "text": "\n\n".join(part.text for part in written.delivered if part.statements),
    }

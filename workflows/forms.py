"""What a run asks of whoever started its task, and what it is answered: values, and how they stand on the wire.

Above: the graphs, the runner, the A2A face. Below: `rag.tasks`. The wire form is kagent's human-in-the-loop extension
(https://kagent.dev/extensions/hitl/v1: ask_user and tool_approval); who does not speak it answers in plain words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rag.errors import InvalidInput
from rag.tasks.messages import text_of

__all__ = [
    "HITL_EXTENSION",
    "Approval",
    "AskUser",
    "Decision",
    "Form",
    "Pending",
    "Question",
    "Reply",
    "read_form",
    "read_reply",
]

HITL_EXTENSION = "https://kagent.dev/extensions/hitl/v1"
MAX_ANSWER_CHARS = 4_000
_YES = frozenset({"yes", "y", "approve", "approved", "proceed", "continue", "ok"})
_NO = frozenset({"no", "n", "reject", "rejected", "deny", "denied", "stop", "cancel"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing to know."""

    question: str
    choices: tuple[str, ...] = ()
    """Empty: any text will do."""
    multiple: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskUser:
    """Questions that only a person can answer."""

    id: str
    """Unique within the step that asks."""
    questions: tuple[Question, ...]
    auth: bool = False
    """Whether what is missing is an authorization: the task then waits as auth-required."""

    @property
    def text(self) -> str:
        """The questions in plain words."""
        return "\n".join(
            one.question + (f" ({' | '.join(one.choices)})" if one.choices else "") for one in self.questions
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the extension's ask_user_request."""
        return {
            "type": "ask_user_request",
            "id": self.id,
            "questions": [
                {"question": one.question, "choices": list(one.choices), "multiple": one.multiple}
                for one in self.questions
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Something that is not done before somebody approves of it."""

    id: str
    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Things to approve of, each by itself."""

    id: str
    """Unique within the step that asks."""
    hint: str
    tools: tuple[Pending, ...]
    auth: bool = False

    @property
    def text(self) -> str:
        """What is asked, in plain words."""
        return f"{self.hint} ({', '.join(one.name for one in self.tools)}; answer yes or no)"

    def to_wire(self) -> dict[str, Any]:
        """Return the extension's tool_approval_request."""
        return {
            "type": "tool_approval_request",
            "id": self.id,
            "hint": self.hint,
            "tools": [
                {"id": one.id, "call_id": one.id, "name": one.name, "args": dict(one.args)} for one in self.tools
            ],
        }


Form = AskUser | Approval


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether one pending thing may be done."""

    approved: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a form was answered."""

    answers: tuple[tuple[str, ...], ...] = ()
    """For each question, in their order."""
    approvals: Mapping[str, Decision] = field(default_factory=dict[str, Decision])
    """For each pending thing, by its id."""
    text: str = ""

    @property
    def approved(self) -> bool:
        """Whether all of it was approved."""
        return bool(self.approvals) and all(one.approved for one in self.approvals.values())


def read_form(wire: Mapping[str, Any]) -> Form:
    """Return the form that `to_wire` made."""
    if wire["type"] == "tool_approval_request":
        tools = tuple(Pending(id=one["id"], name=one["name"], args=one["args"]) for one in wire["tools"])
        return Approval(id=wire["id"], hint=wire["hint"], tools=tools)
    questions = tuple(
        Question(question=one["question"], choices=tuple(one["choices"]), multiple=one["multiple"])
        for one in wire["questions"]
    )
    return AskUser(id=wire["id"], questions=questions)


def read_reply(form: Form, message: Mapping[str, Any]) -> Reply:
    """Return what a message answers to `form`: by the extension's response in its metadata, or else by its words.

    Args:
        form: What was asked.
        message: As `rag.tasks.values.NewTask.message`.

    Raises:
        InvalidInput: It is no answer, not a complete one, or one to something else; the message says what is.
    """
    text = text_of(message).strip()
    response = cast("Mapping[str, Any]", message.get("metadata") or {}).get(HITL_EXTENSION)
    if response is None:
        return _in_words(form, text)
    if not isinstance(response, Mapping):
        raise InvalidInput(f"metadata of {HITL_EXTENSION} is an object")
    wire = cast("Mapping[str, Any]", response)
    return _approvals(form, wire, text) if isinstance(form, Approval) else _answers(form, wire, text)


def _in_words(form: Form, text: str) -> Reply:
    if isinstance(form, Approval):
        word = text.lower().rstrip(".!")
        if word not in _YES | _NO:
            raise InvalidInput(f"answer yes or no, or with the response of {HITL_EXTENSION}")
        decision = Decision(approved=word in _YES)
        return Reply(approvals={one.id: decision for one in form.tools}, text=text)
    if len(form.questions) != 1:
        raise InvalidInput(f"there are {len(form.questions)} questions: answer with the response of {HITL_EXTENSION}")
    return Reply(answers=(_checked(form.questions[0], [text]),), text=text)


def _approvals(form: Approval, wire: Mapping[str, Any], text: str) -> Reply:
    if wire.get("type") != "tool_approval_response" or wire.get("id", form.id) != form.id:
        raise InvalidInput("what was asked is answered by a tool_approval_response")
    found: dict[str, Decision] = {}
    for one in _objects(wire.get("approvals")):
        name, approved, reason = one.get("id"), one.get("approved"), one.get("rejection_reason", "")
        if not isinstance(approved, bool) or not isinstance(reason, str) or not isinstance(name, str) or name in found:
            raise InvalidInput("an approval has an id, approved (true or false) and perhaps a rejection_reason")
        found[name] = Decision(approved=approved, reason=reason[:MAX_ANSWER_CHARS])
    if found.keys() != {one.id for one in form.tools}:
        raise InvalidInput(f"approve or reject each of: {', '.join(one.id for one in form.tools)}")
    return Reply(approvals=found, text=text)


def _answers(form: AskUser, wire: Mapping[str, Any], text: str) -> Reply:
    if wire.get("type") != "ask_user_response" or wire.get("id") != form.id:
        raise InvalidInput("what was asked is answered by an ask_user_response with its id")
    answers = [one.get("answer") for one in _objects(wire.get("answers"))]
    if len(answers) != len(form.questions):
        raise InvalidInput(f"there are {len(form.questions)} questions and {len(answers)} answers")
    return Reply(
        answers=tuple(_checked(one, answer) for one, answer in zip(form.questions, answers, strict=True)), text=text
    )


def _checked(question: Question, answer: object) -> tuple[str, ...]:
    given = cast("Sequence[object]", answer) if isinstance(answer, list) else []
    texts = [one.strip() for one in given if isinstance(one, str)]
    if not texts or len(texts) != len(given) or not all(0 < len(one) <= MAX_ANSWER_CHARS for one in texts):
        raise InvalidInput(f"an answer is 1 to {MAX_ANSWER_CHARS} characters of text")
    if len(texts) > 1 and not question.multiple:
        raise InvalidInput("this question has one answer")
    if question.choices:
        by_name = {choice.lower(): choice for choice in question.choices}
        if not all(one.lower() in by_name for one in texts):
            raise InvalidInput(f"choose from: {', '.join(question.choices)}")
        texts = [by_name[one.lower()] for one in texts]
    return tuple(texts)


def _objects(value: object) -> list[Mapping[str, Any]]:
    found = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", one) for one in found if isinstance(one, dict)]

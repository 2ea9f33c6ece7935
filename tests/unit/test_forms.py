"""What a form may be answered: whatever is sent is a complete answer or refused, and nothing else comes of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidInput
from workflows.forms import HITL_EXTENSION, Approval, AskUser, Form, Pending, Question, read_form, read_reply

APPROVAL = Approval(
    id="run:bound:1", hint="May it?", tools=(Pending(id="1", name="a", args={}), Pending(id="2", name="b", args={}))
)
ASKING = AskUser(
    id="which",
    questions=(
        Question(question="Which?", choices=("Alpha", "beta"), multiple=True),
        Question(question="Why?"),
    ),
)
texts = st.text(max_size=8) | st.sampled_from(["1", "2", "which", "run:bound:1", "alpha", "x" * 4_001, " ", "yes"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
approvals = st.lists(
    st.fixed_dictionaries({}, optional={"id": values, "approved": values, "rejection_reason": values}) | values,
    max_size=3,
)
answers = st.lists(st.fixed_dictionaries({}, optional={"answer": values}) | values, max_size=3)
responses = st.one_of(
    values,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["tool_approval_response", "ask_user_response", "x"]),
            "id": texts,
            "approvals": approvals | values,
            "answers": answers | values,
        },
    ),
)


def message(response: object, text: str = "") -> dict[str, Any]:
    """Return a stored message with the extension's response."""
    return {"parts": [{"text": text}], "metadata": {HITL_EXTENSION: response}}


@given(form=st.sampled_from([APPROVAL, ASKING]), response=responses, text=texts)
def test_any_response_is_an_answer_or_refused(form: Form, response: object, text: str) -> None:
    assert read_form(form.to_wire()) == form
    try:
        reply = read_reply(form, message(response, text))
    except InvalidInput:
        return
    if isinstance(form, Approval):
        assert set(reply.approvals) == {"1", "2"}
    else:
        assert len(reply.answers) == 2
        assert set(reply.answers[0]) <= {"Alpha", "beta"}
        assert all(reply.answers)


@pytest.mark.parametrize("twice", [("1", 1), (1, "1"), ("1", "1"), ("1", []), ({}, "1")])
def test_nothing_is_approved_by_an_id_that_is_named_twice_or_is_none(twice: tuple[object, object]) -> None:
    said = [{"id": one, "approved": number == 1} for number, one in enumerate(twice)]
    response = {"type": "tool_approval_response", "approvals": [*said, {"id": "2", "approved": True}]}
    with pytest.raises(InvalidInput):
        read_reply(APPROVAL, message(response))

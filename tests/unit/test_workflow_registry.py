"""What every workflow of the registry owes to whoever asks for it, to the runner and to the card; also the next one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import sql
from a2a_server.card import Cards
from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from rag.settings import Settings
from workflows.graphs import GRAPHS
from workflows.nodes import WorkflowContext
from workflows.registry import WORKFLOWS, find_workflow
from workflows.workflow import Workflow

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
WRONG: tuple[Any, ...] = ({"wrong": 1}, "wrong", 3.5, [None], None)


def _example(workflow: Workflow) -> tuple[str, dict[str, Any]]:
    """Return the text and the options of the workflow's first example."""
    example = workflow.examples[0]
    return ("", json.loads(example)) if example.startswith("{") else (example, {})


def _seal_lifetime_s() -> float:
    """Return for how long a claim's seal holds, as the newest claim mints it."""
    schema = (Path(sql.__file__).parent / "schema.sql").read_text(encoding="utf-8")
    found = re.findall(r"seal\.mint_v\d+\(r\.tenant_id, 'system:worker', r\.task_id, (\d+)\)", schema)
    return float(found[-1])


@each_workflow
def test_it_is_found_by_its_name_and_has_a_graph_over_plain_context(workflow: Workflow) -> None:
    assert find_workflow(workflow.name) is workflow
    graph = GRAPHS[workflow.name]()
    assert graph.context_schema is WorkflowContext
    assert graph.compile().nodes


@each_workflow
def test_it_is_bounded_in_time_calls_and_tokens(workflow: Workflow) -> None:
    # the run reads and ends its task under the claim's seal: it must still hold at the end of the longest attempt
    assert 0 < workflow.time_limit_s <= _seal_lifetime_s() - 15
    assert workflow.bound.calls > 0
    assert workflow.bound.tokens > 0


@each_workflow
def test_it_says_what_it_makes_and_needs_no_more_than_callers_can_have(workflow: Workflow) -> None:
    assert workflow.artifacts
    assert len(set(workflow.artifacts)) == len(workflow.artifacts)
    assert workflow.scopes | workflow.optional_scopes <= set(Scope)
    assert Scope.TASKS_RUN not in workflow.scopes  # a run starts no further tasks unless its caller may


@each_workflow
def test_its_options_are_a_json_schema_that_stands_for_itself(workflow: Workflow) -> None:
    schema = dict(workflow.options)
    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    for one in re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)):
        assert one in schema["$defs"]
    _, options = _example(workflow)
    Draft202012Validator(schema).validate(options)


@each_workflow
def test_its_examples_are_taken_and_give_plain_json(workflow: Workflow) -> None:
    for example in workflow.examples:
        text, options = ("", json.loads(example)) if example.startswith("{") else (example, {})
        found = workflow.parse(text, options)
        assert json.loads(json.dumps(found)) == found


@each_workflow
def test_an_option_that_there_is_not_is_refused_by_its_name(workflow: Workflow) -> None:
    text, options = _example(workflow)
    with pytest.raises(InvalidInput, match="no_such_option"):
        workflow.parse(text, {**options, "no_such_option": 1})


@each_workflow
def test_an_option_of_the_wrong_form_is_refused_by_its_name(workflow: Workflow) -> None:
    text, options = _example(workflow)
    schema = dict(workflow.options)
    for name, own in schema["properties"].items():
        validator = Draft202012Validator({**own, "$defs": schema.get("$defs", {})})
        wrong = next(value for value in WRONG if not validator.is_valid(value))
        with pytest.raises(InvalidInput, match=name):
            workflow.parse(text, {**options, name: wrong})


@each_workflow
def test_nothing_and_far_too_much_are_refused(workflow: Workflow) -> None:
    for text in ("", "  \n", "x" * 500_000):
        with pytest.raises(InvalidInput, match=r".+"):
            workflow.parse(text, {})


def test_the_card_has_a_skill_for_each_of_them_and_no_other(tmp_path: Path) -> None:
    card = Cards(settings=Settings(data_dir=tmp_path), key=None).public()
    assert [(skill.id, skill.name, skill.description) for skill in card.skills] == [
        (workflow.name, workflow.title, workflow.description) for workflow in WORKFLOWS
    ]


def test_names_are_said_once_and_the_unknown_is_told_what_there_is() -> None:
    names = [workflow.name for workflow in WORKFLOWS]
    assert len(set(names)) == len(names)
    with pytest.raises(InvalidInput, match=", ".join(names)):
        find_workflow("no such workflow")

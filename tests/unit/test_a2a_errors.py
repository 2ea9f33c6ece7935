"""The A2A face's error table is total, and tells a caller nothing of a defect of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from a2a.server.request_handlers.response_helpers import build_error_response

from a2a_server.errors import TABLE, a2a_error, http_status
from rag.errors import BulkheadError


def _tree(root: type[BulkheadError]) -> Iterator[type[BulkheadError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


KINDS = sorted(set(_tree(BulkheadError)), key=lambda kind: kind.code)


def test_every_code_of_the_tree_has_a_row_and_every_row_a_code() -> None:
    assert {kind.code for kind in KINDS} == set(TABLE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_an_error_keeps_its_code_on_the_wire(kind: type[BulkheadError]) -> None:
    error = build_error_response(1, a2a_error(kind("what to do")))["error"]
    assert error["data"][0]["metadata"]["code"] == kind.code
    assert error["code"] < 0
    assert 200 <= http_status(kind.code) < 600


@pytest.mark.parametrize("code", ["internal", "misconfigured", "fence_lost"])
def test_a_defect_of_ours_is_told_without_its_text(code: str) -> None:
    (kind,) = [kind for kind in KINDS if kind.code == code]
    error = build_error_response(1, a2a_error(kind("select * from secrets")))["error"]
    assert (error["code"], error["message"]) == (-32603, "Internal error")

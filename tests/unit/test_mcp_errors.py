"""Every error of ours has a form on the MCP wire, and no defect tells a client about itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mcp.shared.exceptions import MCPError

from mcp_server.errors import CODES, READ_BY_MODELS, as_result, refusal
from rag.errors import BulkheadError, NotFound, RateLimited, Revoked


def subclasses(root: type[BulkheadError]) -> Iterator[type[BulkheadError]]:
    """Yield the whole tree."""
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def test_the_table_names_each_error_exactly_once_and_no_other() -> None:
    assert {kind.code for kind in subclasses(BulkheadError)} == set(CODES)


def test_codes_of_ours_keep_out_of_the_range_that_the_protocol_reserves() -> None:
    for code in CODES.values():
        assert code in {-32602, -32603} or not -32768 <= code <= -32000


@pytest.mark.parametrize("kind", list(subclasses(BulkheadError)), ids=lambda kind: kind.code)
def test_each_error_becomes_a_result_or_a_refusal(kind: type[BulkheadError]) -> None:
    error = kind("the caller's text")
    assert refusal(error).code == CODES[kind.code]
    if kind.code in READ_BY_MODELS:
        result = as_result(error)
        assert result.is_error
        assert result.meta == {"bulkhead/code": kind.code}
        return
    with pytest.raises(MCPError) as caught:
        as_result(error)
    assert caught.value.code == CODES[kind.code]
    assert (caught.value.message == "internal error") == (caught.value.code == -32603)


def test_a_rate_limit_says_when_to_come_back_in_whole_milliseconds() -> None:
    assert refusal(RateLimited(retry_after_s=0.0123)).data == {"code": "rate_limited", "retryAfterMs": 13}


def test_a_subclass_keeps_its_own_name_beside_the_shared_code() -> None:
    assert refusal(Revoked()).data == {"code": "revoked"}
    assert as_result(NotFound()).meta == {"bulkhead/code": "not_found"}


def test_what_is_absent_has_the_code_of_the_request_s_revision() -> None:
    assert refusal(NotFound(), version="2025-11-25").code == -32002
    assert refusal(NotFound(), version="2026-07-28").code == -32602

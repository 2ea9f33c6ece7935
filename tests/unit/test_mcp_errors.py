"""Every error of ours has a form on the MCP wire, and no defect tells a client about itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from a2a.server.request_handlers.response_helpers import build_error_response
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS

from a2a_server.errors import a2a_error, http_status
from mcp_server.errors import CODES, READ_BY_MODELS, as_result, refusal
from rag.errors import BulkheadError, NotFound, RateLimited, Revoked

ROOT = Path(__file__).parents[2]


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


def documented() -> list[list[str]]:
    """Return the cells of every row of the documentation's tables."""
    rows = [row for row in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines() if row[:1] == "|"]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_documentation_shows_every_error_as_both_servers_send_it() -> None:
    rows = {cells[0].strip("`"): cells[1:] for cells in documented() if cells[0].startswith("`")}
    kinds = list(subclasses(BulkheadError))
    assert set(rows) == {kind.code for kind in kinds}
    for kind in kinds:
        code = CODES[kind.code]
        *told, what_to_do = rows[kind.code]
        assert told == [
            str(code),
            str(ERROR_CODE_HTTP_STATUS.get(code, 200)),
            "result" if kind.code in READ_BY_MODELS else "error",
            str(build_error_response(1, a2a_error(kind("text")))["error"]["code"]),
            str(http_status(kind.code)),
        ], kind.code
        assert what_to_do, kind.code


def test_the_documentation_names_every_status_with_which_the_door_refuses() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mcp_server").glob("*.py"))
    refusals = {(status, code) for status, code in re.findall(r"(?:refused|response)\(\s*(\d{3}), (\w+)", source)}
    assert {"400", "401", "403", "413", "503"} <= {status for status, _ in refusals}
    rows = [cells[0] for cells in documented() if cells[0][:1].isdigit()]
    assert {status for status, _ in refusals} <= {status for row in rows for status in row.split(", ")}

"""One task, three processes, one trace: from the caller's span through worker, graph node and MCP call to the SQL."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest

from rag.identity.scopes import Audience
from tests.support.agents import Rpc, message
from tests.support.documents import put_raw_document
from tests.support.otlp_receiver import OtlpReceiver, Span, otlp_receiver
from tests.support.processes import fleet_settings, started
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TEXT = "It shall be unlawful for any person to use any manipulative or deceptive device in the sale of any security."
QUESTION = "Is a deceptive device unlawful?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A task that was run, and every span that came of it."""

    spans: list[Span]
    task_id: str
    tenant_id: str
    logs: str

    def named(self, service: str, name: str) -> list[Span]:
        """Return the spans of that name."""
        return [span for span in self.spans if (span.service, span.name) == (service, name)]

    def above(self, span: Span) -> list[Span]:
        """Return the span's ancestors, nearest first."""
        by_id = {one.span_id: one for one in self.spans}
        found: list[Span] = []
        while (parent := by_id.get(span.parent_id)) is not None:
            found.append(parent)
            span = parent
        return found


@pytest.fixture(name="traced")
async def traced_fixture(world: World, tmp_path: Path) -> AsyncGenerator[Traced]:
    """Ask one question with a traceparent of the caller's, then let everything be exported."""
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme)) as session:
        await put_raw_document(session, title="Law", text=TEXT)
    async with otlp_receiver() as receiver:
        settings = fleet_settings(world.settings, otlp_endpoint=receiver.endpoint)
        async with (
            started("mcp_server", settings, tmp_path),
            started("a2a_server", settings, tmp_path),
            started("workflows", settings, tmp_path),
            httpx.AsyncClient(timeout=BOUND_S) as http,
        ):
            token = world.token(acme, audience=Audience.A2A)
            rpc = Rpc(base=settings.a2a_url, token=token, http=http)
            headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
            answer = (await rpc.raw("SendMessage", message(QUESTION), **headers)).json()
            task = answer["result"]["task"]
            assert task["status"]["state"] == "TASK_STATE_COMPLETED", task
            spans = await _exported(receiver)
        logs = "".join([path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log")])  # noqa: ASYNC240
        yield Traced(spans=spans, task_id=task["id"], tenant_id=str(acme.tenant_id), logs=logs)


async def _exported(receiver: OtlpReceiver) -> list[Span]:
    def whole(spans: list[Span]) -> bool:
        """The request, the run and a search are there, and no span of the trace waits for its parent."""
        ours = [span for span in spans if span.trace_id == TRACE_ID]
        names = {(span.service, span.name) for span in ours}
        wanted = {("a2a_server", "POST /a2a/jsonrpc"), ("workflows", "run rag"), ("mcp_server", "sql search")}
        return wanted <= names and {span.parent_id for span in ours} <= {SPAN_ID, *(span.span_id for span in ours)}

    with anyio.fail_after(BOUND_S):
        return await receiver.until(whole)


async def test_a_task_is_one_trace_through_three_processes_down_to_the_sql(traced: Traced) -> None:
    (request,) = traced.named("a2a_server", "POST /a2a/jsonrpc")
    assert (request.trace_id, request.parent_id) == (TRACE_ID, SPAN_ID)
    (accepted,) = traced.named("a2a_server", "sql create_task_alone")
    assert request in traced.above(accepted)
    (run,) = traced.named("workflows", "run rag")
    assert run.trace_id == TRACE_ID
    assert request in [run, *traced.above(run)]
    assert run.attributes["bulkhead.task"] == traced.task_id
    assert run.attributes["bulkhead.tenant"] == traced.tenant_id
    for node in ("search", "rank", "generate", "verify"):
        (span,) = traced.named("workflows", f"node {node}")
        assert run in traced.above(span)
    (search,) = traced.named("workflows", "node search")
    (sql,) = traced.named("mcp_server", "sql search")
    assert sql.trace_id == TRACE_ID
    assert search in traced.above(sql)
    assert [span for span in traced.above(sql) if span.service == "mcp_server"]
    appended = traced.named("workflows", "sql append_event_alone")
    assert appended
    assert all(run in traced.above(span) for span in appended)


async def test_neither_spans_nor_logs_hold_text_or_tokens(traced: Traced) -> None:
    said = traced.logs + "".join(f"{span.name}{span.attributes}{span.events}" for span in traced.spans)
    assert traced.task_id in said
    for secret in (TEXT, TEXT[:40], QUESTION, "Bearer", "eyJ"):
        assert secret not in said

"""One physical call that comes to its end: what is sent, and what is made of the answer, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from rag.llm.breaker import BreakerRules
from rag.llm.request import TokenUsage
from rag.llm.wire import stream
from tests.support.faulty_proxy import Disturbance
from tests.support.gated_model import gated_model
from tests.support.models import KEY, PROMPT, QUICK, Reader, offer
from tests.support.openai_server import Fault
from tests.support.wire_scene import BOUND_S, Scene, Stage, answers, event, piece, scene_on, stage

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Stage]:
    async with stage() as shared:
        yield shared


@pytest.fixture
async def scene(running: Stage) -> AsyncIterator[Scene]:
    async with scene_on(running) as own:
        yield own


async def test_a_call_asks_for_its_usage_and_always_says_how_many_tokens_may_be_written(scene: Scene) -> None:
    reader = Reader()
    reply = await scene.ask(reader)
    assert scene.server.requests == [
        {
            "model": "served-small",
            "messages": [{"role": "system", "content": PROMPT.system}, {"role": "user", "content": PROMPT.user}],
            "max_tokens": 64,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert scene.server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert reader.pieces == ["Hello", " world."]
    prompt = len(json.dumps(PROMPT.messages()))
    assert (reply.text, reply.finish, reply.raw) == ("Hello world.", "stop", {"id": "c"})
    assert reply.usage == TokenUsage(prompt=prompt, cached=0, completion=2)
    assert 0 < reply.first_token_s <= reply.total_s


async def test_a_schema_is_sent_as_the_form_of_the_answer(scene: Scene) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    await scene.ask(Reader(), request=replace(PROMPT, schema=schema))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert scene.server.requests[0]["response_format"] == form


@pytest.mark.parametrize(("kind", "sent"), [("vllm", "of the tenant"), ("openai", None), ("ollama", None)])
async def test_the_salt_goes_to_a_vllm_and_to_nobody_who_would_refuse_it(
    scene: Scene, kind: str, sent: str | None
) -> None:
    await scene.ask(Reader(), at=offer(scene.proxy.base_url, kind=kind), cache_salt="of the tenant")
    assert scene.server.requests[0].get("cache_salt") == sent


async def test_the_call_belongs_to_the_callers_trace(scene: Scene) -> None:
    span = TracerProvider().get_tracer("test").start_span("question")
    with trace.use_span(span):
        await scene.ask(Reader())
    context = span.get_span_context()
    assert (
        scene.server.headers[0]["traceparent"]
        == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    )


async def test_a_piece_is_emitted_before_the_next_one_is_written(scene: Scene) -> None:
    came: list[anyio.Event] = [anyio.Event(), anyio.Event()]
    pieces: list[str] = []

    async def reader(text: str) -> None:
        pieces.append(text)
        came[len(pieces) - 1].set()

    async with gated_model("One", " two") as model, anyio.create_task_group() as group:

        async def ask() -> None:
            await stream(scene.client, offer(model.base_url), PROMPT, reader, cache_salt=None, limits=QUICK)

        group.start_soon(ask)
        with anyio.fail_after(BOUND_S):
            answer = await model.answer(0)
            answer.allow(1)
            await came[0].wait()
            assert pieces == ["One"]
            answer.allow(1)
            await came[1].wait()


async def test_the_connection_of_a_whole_answer_is_used_again(scene: Scene) -> None:
    for _ in range(3):
        await scene.ask(Reader())
    assert (scene.proxy.requests, scene.proxy.connections) == (3, 1)


@pytest.mark.parametrize(("told", "cached"), [(None, 0), (0, 0), (17, 17)])
async def test_tokens_from_the_prefix_cache_are_told_apart(scene: Scene, told: int | None, cached: int) -> None:
    scene.server.cached_tokens = told
    reply = await scene.ask(Reader())
    assert reply.usage is not None
    assert reply.usage.cached == cached


async def test_thinking_is_no_text_and_no_silence(scene: Scene) -> None:
    thoughts = [event(choices=[{"delta": {name: "Hm."}}]) for name in ("reasoning_content", "reasoning")]
    reader = Reader()
    scene.proxy.faults.append(answers(*thoughts, piece("Yes.", "stop")))
    assert (await scene.ask(reader)).text == "Yes."
    assert reader.pieces == ["Yes."]
    for thought in thoughts:
        scene.proxy.faults.append(answers(thought, then="hang"))
        with anyio.fail_after(BOUND_S):
            # as between tokens, not as before the first
            limits = replace(QUICK, first_token_s=100, between_tokens_s=0.2, total_s=100)
            assert not (await scene.maybe_billed(Reader(), limits=limits)).emitted


@pytest.mark.parametrize(
    "after_the_end",
    [
        pytest.param([], id="closed"),
        pytest.param([b"data: {{{\n\n"], id="garbage"),
        pytest.param([event(error={"message": "late"})], id="an error"),
    ],
)
@pytest.mark.parametrize("then", ["end", "reset", "hang"])
async def test_a_text_whose_end_was_told_is_whole_whatever_follows(
    scene: Scene, after_the_end: Sequence[bytes], then: Any
) -> None:
    scene.proxy.faults.append(answers(piece("One"), piece("", "stop"), *after_the_end, then=then))
    with anyio.fail_after(BOUND_S):
        reply = await scene.ask(Reader(), limits=replace(QUICK, between_tokens_s=0.3))
    assert (reply.text, reply.finish, reply.usage) == ("One", "stop", None)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "other"), ("tool_calls", "other"), (7, "other")],
)
async def test_why_a_text_ends_is_told(scene: Scene, reason: Any, finish: str) -> None:
    scene.proxy.faults.append(answers(piece("One", reason), b"data: [DONE]\n\n"))
    assert (await scene.ask(Reader())).finish == finish


async def test_a_server_that_gives_no_reason_is_taken_at_its_word_that_it_is_done(scene: Scene) -> None:
    scene.proxy.faults.append(answers(piece("One"), b"data: [DONE]\n\n"))
    reply = await scene.ask(Reader())
    assert (reply.text, reply.finish) == ("One", "other")


async def test_text_after_the_end_is_none_of_the_answer(scene: Scene) -> None:
    reader = Reader()
    scene.proxy.faults.append(answers(piece("One", "stop"), piece(" two"), b"data: [DONE]\n\n"))
    assert (await scene.ask(reader)).text == "One"
    assert reader.pieces == ["One"]


async def test_text_that_cannot_be_stored_is_replaced(scene: Scene) -> None:
    scene.proxy.faults.append(
        answers(b'data: {"choices":[{"delta":{"content":"a\\u0000b\\ud800c"}}]}\n\n', piece("", "stop"))
    )
    assert (await scene.ask(Reader())).text == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"prompt_tokens": -1, "completion_tokens": 2}, id="below zero"),
        pytest.param({"prompt_tokens": 9, "completion_tokens": -2}, id="written below zero"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 2}, id="no prompt"),
        pytest.param({"prompt_tokens": 9, "completion_tokens": 0}, id="nothing written"),
        pytest.param({"prompt_tokens": 9}, id="half a count"),
        pytest.param({"prompt_tokens": "9", "completion_tokens": "2"}, id="words"),
        pytest.param({"prompt_tokens": 9.5, "completion_tokens": 2}, id="fractions"),
        pytest.param({"prompt_tokens": True, "completion_tokens": True}, id="truths"),
        pytest.param({"prompt_tokens": 1 << 40, "completion_tokens": 2}, id="more than there are"),
        pytest.param(
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 10}},
            id="more cached than read",
        ),
        pytest.param(
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -1}},
            id="cached below zero",
        ),
        pytest.param([9, 2], id="a list"),
        pytest.param("much", id="a word"),
    ],
)
async def test_a_count_that_cannot_be_is_none(scene: Scene, told: Any) -> None:
    scene.server.usage = told
    reply = await scene.ask(Reader())
    assert (reply.text, reply.usage) == ("Hello world.", None)


async def test_a_count_beyond_what_was_asked_for_is_kept(scene: Scene) -> None:
    scene.server.usage = {"prompt_tokens": 5_000_000, "completion_tokens": 9_000, "prompt_tokens_details": None}
    reply = await scene.ask(Reader())
    assert reply.usage == TokenUsage(prompt=5_000_000, cached=0, completion=9_000)


async def test_a_count_so_far_is_no_count_of_the_call(scene: Scene) -> None:
    scene.server.usage_in_each = True
    scene.server.prompt_tokens = 9
    scene.server.faults.append(Fault(cut_after=1))
    assert (await scene.maybe_billed(Reader())).usage is None
    assert (await scene.ask(Reader())).usage == TokenUsage(prompt=9, cached=0, completion=2)


RULES = BreakerRules(in_a_row=5, pause_s=10, jitter=0.5)
FAILING = [
    pytest.param(Disturbance(answer=b"", then="hang"), id="hung"),
    pytest.param(answers(piece("One"), then="trickle"), id="slow"),
    pytest.param(
        Disturbance(answer=b"HTTP/1.1 500 Internal\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), id="500"
    ),
    pytest.param(answers(b"data: \x00\x01\n\n"), id="garbage"),
    pytest.param(Disturbance(answer=b"", then="reset"), id="reset"),
]

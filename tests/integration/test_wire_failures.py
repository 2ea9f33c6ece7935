"""One physical call that goes wrong, by a proxy of our own that disturbs real HTTP: what it may have cost is told.

That a wait is bounded is shown by the bound that ends it: behind it the server stays silent for good.
"""

from __future__ import annotations

import gzip
import logging
import socket
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest

from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.request import TokenUsage
from rag.llm.wire import stream
from tests.support.faulty_proxy import Disturbance
from tests.support.models import KEY, PROMPT, QUICK, Reader, offer
from tests.support.openai_server import Fault
from tests.support.wire_scene import BOUND_S, Scene, Stage, answers, event, piece, scene_on, stage

pytestmark = pytest.mark.anyio

BRIEF = replace(QUICK, first_token_s=0.3, between_tokens_s=0.2)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Stage]:
    async with stage() as shared:
        yield shared


@pytest.fixture
async def scene(running: Stage) -> AsyncIterator[Scene]:
    async with scene_on(running) as own:
        yield own


@pytest.mark.parametrize(
    ("status", "retryable", "at_fault"),
    [
        (307, False, True),
        (400, False, False),
        (401, False, True),
        (404, False, True),
        (408, True, True),
        (413, False, False),
        (422, False, False),
        (429, True, False),
        (503, True, True),
    ],
)
async def test_a_refusal_before_any_work_is_not_billed(
    scene: Scene, status: int, retryable: bool, at_fault: bool
) -> None:
    scene.server.faults.append(Fault(status=status, headers={"location": scene.server.base_url}))
    failure = await scene.not_billed()
    assert (failure.status, failure.retryable, failure.at_fault) == (status, retryable, at_fault)
    assert len(scene.server.requests) == 1, "a redirect is not followed"


@pytest.mark.parametrize(
    ("head", "seconds"),
    [
        (b"retry-after: 7", 7.0),
        (b"retry-after: 0.5", 0.5),
        (b"retry-after: -3", 0.0),
        (b"retry-after: 1e9", 3600.0),
        (b"retry-after: nan", None),
        (b"retry-after: soon", None),
        (b"retry-after: Thu, 01 Oct 2026 10:00:42 GMT\r\ndate: Thu, 01 Oct 2026 10:00:30 GMT", 12.0),
        (b"retry-after: Thu, 01 Oct 2026 10:00:42 GMT", None),
        (b"x-other: 1", None),
    ],
)
async def test_the_pause_that_a_server_asks_for_is_told(scene: Scene, head: bytes, seconds: float | None) -> None:
    answer = b"HTTP/1.1 429 Too Many Requests\r\n" + head + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    scene.proxy.faults.append(Disturbance(answer=answer))
    assert (await scene.not_billed()).retry_after_s == seconds


@pytest.mark.parametrize("status", [202, 500, 502, 504, 529])
async def test_a_server_that_fails_may_have_worked_before(scene: Scene, status: int) -> None:
    scene.server.faults.append(Fault(status=status))
    failure = await scene.maybe_billed(Reader())
    assert (failure.status, failure.at_fault) == (status, True)


async def test_a_server_that_is_not_there_bills_nothing(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = offer(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    failure = await scene.not_billed(at=nowhere)
    assert (failure.retryable, failure.at_fault) == (True, True)


async def test_the_wait_for_a_connection_is_bounded_and_bills_nothing(scene: Scene) -> None:
    with socket.socket() as full, socket.socket() as first:
        # Linux leaves further callers without an answer once as many wait as a backlog of 0 lets: one
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        silent = offer(f"http://127.0.0.1:{full.getsockname()[1]}/v1")
        failure = await scene.not_billed(limits=replace(QUICK, connect_s=0.2), at=silent)
    assert (failure.retryable, failure.at_fault) == (True, True)


async def test_a_full_pool_of_our_own_is_not_the_servers_fault(scene: Scene) -> None:
    scene.proxy.always = Disturbance(answer=b"", then="hang")
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(trust_env=False, limits=limits) as narrow, anyio.create_task_group() as group:

        async def occupy() -> None:
            await stream(narrow, offer(scene.proxy.base_url), PROMPT, Reader(), cache_salt=None, limits=QUICK)

        group.start_soon(occupy)
        with anyio.fail_after(BOUND_S):
            await scene.proxy.until(requests=1)
        with pytest.raises(NotBilled) as failure:
            await stream(
                narrow,
                offer(scene.proxy.base_url),
                PROMPT,
                Reader(),
                cache_salt=None,
                limits=replace(QUICK, connect_s=0.2),
            )
        assert (failure.value.retryable, failure.value.at_fault) == (True, False)
        group.cancel_scope.cancel()


async def test_a_prompt_that_is_no_text_is_its_callers_fault_and_goes_into_no_traceback(scene: Scene) -> None:
    with pytest.raises(NotBilled) as failure:
        await scene.ask(Reader(), request=replace(PROMPT, user=PROMPT.user + "\ud83d"))
    assert (failure.value.retryable, failure.value.at_fault) == (False, False)
    assert PROMPT.user not in repr(failure.value.__cause__)
    assert failure.value.__suppress_context__


async def test_a_failed_call_gives_its_connection_back(scene: Scene) -> None:
    async def refuses(_: str) -> None:
        raise KeyError("x")

    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(trust_env=False, limits=limits) as scene.client:
        scene.server.faults.extend([Fault(status=400), Fault(status=500), Fault(cut_after=1), Fault()])
        scene.server.pieces = ["more"] * 1000
        assert (await scene.not_billed()).status == 400
        assert (await scene.maybe_billed(Reader())).status == 500
        await scene.maybe_billed(Reader())
        with pytest.raises(KeyError):
            await stream(scene.client, offer(scene.proxy.base_url), PROMPT, refuses, cache_salt=None, limits=QUICK)
        assert (await scene.ask(Reader())).finish == "stop"


async def test_a_transport_that_does_not_say_when_it_sends_is_waited_for_within_bounds_too() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await anyio.Event().wait()
            raise AssertionError

    limits = replace(QUICK, connect_s=0.05, first_token_s=0.05)
    async with httpx.AsyncClient(transport=Silent()) as client:
        with anyio.fail_after(BOUND_S), pytest.raises(MaybeBilled, match="fell silent"):
            await stream(client, offer("http://127.0.0.1:1/v1"), PROMPT, Reader(), cache_salt=None, limits=limits)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/v1", "gopher://127.0.0.1/v1", "http:///v1"])
async def test_an_address_that_is_none_bills_nothing_and_is_not_tried_again(scene: Scene, url: str) -> None:
    assert not (await scene.not_billed(at=offer(url))).retryable


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(Disturbance(answer=b"", then="hang"), id="no status"),
        pytest.param(answers(then="hang"), id="no event"),
        pytest.param(answers(then="trickle"), id="comments only"),
        pytest.param(answers(piece("")[:-9], then="hang"), id="half an event"),
        pytest.param(answers(event(choices=[{"delta": {"role": "assistant"}}]), then="trickle"), id="a role only"),
        pytest.param(Disturbance(pause_s=0.05), id="a byte now and then"),
    ],
)
async def test_the_first_token_is_waited_for_within_its_bound(scene: Scene, silent: Disturbance) -> None:
    scene.proxy.faults.append(silent)
    reader = Reader()
    with anyio.fail_after(BOUND_S):
        failure = await scene.maybe_billed(reader, limits=BRIEF)
    assert (str(failure), failure.at_fault) == ("the model server fell silent", True)
    assert reader.pieces == []


@pytest.mark.parametrize("then", ["hang", "trickle"])
async def test_the_next_token_is_waited_for_within_its_bound(scene: Scene, then: Any) -> None:
    scene.proxy.faults.append(answers(piece("One"), then=then))
    reader = Reader()
    with anyio.fail_after(BOUND_S):
        failure = await scene.maybe_billed(reader, limits=replace(QUICK, between_tokens_s=0.2))
    assert (str(failure), reader.pieces) == ("the model server fell silent", ["One"])


async def test_a_call_as_a_whole_is_bounded(scene: Scene) -> None:
    scene.server.pieces = ["a"] * 1000
    scene.proxy.faults.append(Disturbance(pause_s=0.001))
    with anyio.fail_after(BOUND_S):
        failure = await scene.maybe_billed(Reader(), limits=replace(QUICK, total_s=0.8))
    assert (str(failure), failure.at_fault) == ("the model server did not finish in 0.8 seconds", True)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(answers(piece("One"), then="reset"), id="reset"),
        pytest.param(answers(piece("One")), id="closed in order"),
        pytest.param(answers(piece("One"), piece("two")[:20]), id="closed in an event"),
        pytest.param(answers(piece("One"), b"data: {{{\n\n"), id="no JSON"),
        pytest.param(answers(piece("One"), b"data: \xff\xfe\n\n"), id="no UTF-8"),
        pytest.param(answers(piece("One"), b"data: " + b"[" * 100_000 + b"\n\n"), id="deep JSON"),
        pytest.param(answers(piece("One"), b"data: 1\n\n"), id="no object"),
        pytest.param(answers(piece("One"), event(choices=3)), id="choices that are none"),
        pytest.param(answers(piece("One"), event(choices=[{"delta": {"content": 3}}])), id="text that is none"),
        pytest.param(answers(piece("One"), event(error={"message": PROMPT.user})), id="an error"),
        pytest.param(answers(piece("One"), piece("", "abort")), id="given up"),
        pytest.param(answers(piece("One"), b"x" * (3 << 20), then="hang"), id="a line without end"),
        pytest.param(answers(piece("One"), b": \n" * (1 << 20), then="hang"), id="comments without end"),
        pytest.param(Disturbance(after=700, then="reset"), id="the server's own answer, reset"),
        pytest.param(Disturbance(after=700, then="end"), id="the server's own answer, half closed"),
    ],
)
async def test_an_answer_that_breaks_off_may_be_billed_and_was_seen(scene: Scene, broken: Disturbance) -> None:
    scene.server.pieces = ["One", *("more" for _ in range(50))]
    scene.proxy.faults.append(broken)
    reader = Reader()
    with anyio.fail_after(BOUND_S):
        failure = await scene.maybe_billed(reader)
    assert reader.pieces[0] == "One"
    assert (failure.at_fault, failure.usage) == (True, None)


@pytest.mark.parametrize(
    "nothing",
    [
        pytest.param(Disturbance(answer=b"\x00garbage\r\n\r\n"), id="no HTTP"),
        pytest.param(Disturbance(answer=b"", then="reset"), id="reset"),
        pytest.param(Disturbance(answer=b"", then="end"), id="closed"),
        pytest.param(answers(), id="an empty body"),
        pytest.param(answers(b"<html>busy</html>"), id="a page"),
        pytest.param(answers(b"data: [DONE]\n\n"), id="an end of nothing"),
    ],
)
async def test_an_answer_that_never_began_may_be_billed_and_was_not_seen(scene: Scene, nothing: Disturbance) -> None:
    scene.proxy.faults.append(nothing)
    with anyio.fail_after(BOUND_S):
        failure = await scene.maybe_billed(Reader())
    assert not failure.emitted


async def test_a_packed_answer_is_not_unpacked(scene: Scene) -> None:
    packed = gzip.compress(piece("One", "stop"))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n"
    scene.proxy.faults.append(Disturbance(answer=head + packed))
    await scene.maybe_billed(Reader())
    await scene.ask(Reader())
    assert scene.server.headers[0]["accept-encoding"] == "identity"


async def test_a_server_that_does_not_stop_is_broken_off_and_no_more_is_emitted(scene: Scene) -> None:
    scene.server.pieces = ["0123456789"] * 1000
    reader = Reader()
    failure = await scene.maybe_billed(reader, limits=replace(QUICK, max_chars=25))
    assert (reader.text, str(failure)) == ("0123456789" * 2, "the model server does not stop writing")
    with anyio.fail_after(BOUND_S):
        await scene.server.abandoned.wait()


async def test_a_count_that_was_told_before_the_stream_broke_is_told_on(scene: Scene) -> None:
    counted = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2})
    scene.proxy.faults.append(answers(piece("One"), counted, then="reset"))
    assert (await scene.maybe_billed(Reader())).usage == TokenUsage(prompt=9, completion=2)


async def test_a_slow_reader_is_not_the_models_silence(scene: Scene) -> None:
    read: list[str] = []

    async def slow(text: str) -> None:
        read.append(text)
        with anyio.move_on_after(0.3):
            await anyio.Event().wait()

    where = offer(scene.proxy.base_url)
    limits = replace(QUICK, between_tokens_s=0.2)
    reply = await stream(scene.client, where, PROMPT, slow, cache_salt=None, limits=limits)
    assert (reply.text, read) == ("Hello world.", ["Hello", " world."])


async def test_a_call_that_its_reader_held_up_is_not_the_servers_fault(scene: Scene) -> None:
    async def stuck(_: str) -> None:
        await anyio.Event().wait()

    limits = replace(QUICK, total_s=1.5)
    with anyio.fail_after(BOUND_S), pytest.raises(MaybeBilled) as failure:
        await stream(scene.client, offer(scene.proxy.base_url), PROMPT, stuck, cache_salt=None, limits=limits)
    assert (failure.value.at_fault, failure.value.emitted) == (False, True)


@pytest.mark.parametrize("failure", [TimeoutError("of the reader"), httpx.ReadError("of the reader"), KeyError("x")])
async def test_what_the_reader_raises_goes_through_and_ends_the_servers_work(scene: Scene, failure: Exception) -> None:
    scene.server.pieces = ["a"] * 10_000

    async def refuses(_: str) -> None:
        raise failure

    with pytest.raises(type(failure)) as raised:
        await stream(scene.client, offer(scene.server.base_url), PROMPT, refuses, cache_salt=None, limits=QUICK)
    assert raised.value is failure
    with anyio.fail_after(BOUND_S):
        await scene.server.abandoned.wait()


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(Disturbance(answer=b"", then="hang"), id="before the status"),
        pytest.param(answers(then="hang"), id="before the first token"),
        pytest.param(answers(piece("One"), then="hang"), id="between tokens"),
        pytest.param(answers(piece("One"), piece("", "stop"), then="hang"), id="after the end"),
    ],
)
async def test_a_cancelled_call_closes_its_connection_at_once(scene: Scene, where: Disturbance) -> None:
    scene.proxy.faults.append(where)
    async with anyio.create_task_group() as group:
        group.start_soon(scene.ask, Reader())
        with anyio.fail_after(BOUND_S):
            await scene.proxy.until(answered=1)
        assert scene.proxy.closed == 0
        group.cancel_scope.cancel()
    with anyio.fail_after(BOUND_S):
        await scene.proxy.until(closed=1)


async def test_no_failure_tells_what_was_sent_or_to_whom(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rag")
    scene.server.faults.extend([Fault(status=400), Fault(status=500), Fault(cut_after=1), Fault(cut_after=0)])
    failures: list[Exception] = [await scene.not_billed()]
    failures += [await scene.maybe_billed(Reader()) for _ in range(3)]
    scene.proxy.faults.append(answers(event(error={"message": f"{PROMPT.user} {KEY}"})))
    failures.append(await scene.maybe_billed(Reader()))
    failures.append(await scene.not_billed(at=offer("http://127.0.0.1:port/v1")))
    for failure in failures:
        told = f"{failure} {vars(failure)}" + "".join(traceback.format_exception(failure))
        for secret in (KEY, PROMPT.user, PROMPT.system, "127.0.0.1"):
            assert secret not in told
    assert caplog.records == []

"""`bulkhead bench llm` against a real HTTP server of our own in the OpenAI API's shape, which is not vLLM and no model.

What it says of time is never asserted; what it says of tokens, calls, failures and money is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import click
import httpx
import jsonschema
import pytest

from rag.catalogue.configured import of_settings
from rag.catalogue.operator import CatalogueOperator
from rag.cli.bench_target import AUTO, Target, offer_of
from rag.errors import InvalidInput, NotFound, Unavailable
from rag.llm.bench.figures import LevelRecord, figures
from rag.llm.bench.measure import MIN_REQUESTS, PER_PLACE, Plan, measure, warm_up
from rag.llm.bench.prompts import PromptShape
from rag.llm.catalogue import Offer, Tier
from rag.llm.request import Limits
from rag.settings import Settings
from tests.support.openai_server import Fault, OpenAiServer, serve_openai
from tests.support.world import World

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "results" / "llm"
BOUND_S = 30.0
KEY = "sk-very-secret"
SMI = """\
#!/bin/sh
echo 'NVIDIA H100 80GB HBM3, 81559, 570.86.15'
echo 'NVIDIA H100 80GB HBM3, [N/A], 570.86.15'
"""
QUICK = Limits(connect_s=5, first_token_s=10, between_tokens_s=10, total_s=20)
SMALL = PromptShape(shared_words=20, own_words=5)


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    async with serve_openai() as running:
        running.pieces = ("One", " two", " three", " four.")
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as opened:
        yield opened


class Bench:
    """The command, in a folder of its own and with nothing inherited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}  # noqa: TID251
        self.env = {**inherited, "BULKHEAD_DATA_DIR": str(folder / "data"), "BULKHEAD_CERTS_DIR": str(folder / "certs")}

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "rag.cli", "bench", "llm", *map(str, arguments)]

    async def run(self, *arguments: object, check: bool = True, given: bytes = b"") -> tuple[int, str, str]:
        with anyio.fail_after(BOUND_S):
            done = await anyio.run_process(
                self.command(*arguments), env=self.env, cwd=self.folder, input=given, check=False
            )
        out, err = done.stdout.decode(), done.stderr.decode()
        if check:
            assert done.returncode == 0, err
        return done.returncode, out, err

    def results(self) -> list[Path]:
        return sorted((self.folder / "results").glob("*.json"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def schema() -> Any:
    return json.loads((COMMITTED / "schema.json").read_text(encoding="utf-8"))


def check_form(result: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(result)


def at(server: OpenAiServer) -> Offer:
    return of_settings(server.base_url, "tiny", None).offers[0]


def plan(**changed: Any) -> Plan:
    return replace(Plan(run="r1", shape=SMALL, max_tokens=8, requests=6, limits=QUICK), **changed)


async def run_levels(
    client: httpx.AsyncClient, offer: Offer, asked: Plan, *concurrencies: int, records: list[LevelRecord] | None = None
) -> list[LevelRecord]:
    kept: list[LevelRecord] = [] if records is None else records
    with anyio.fail_after(BOUND_S):
        await measure(client, offer, asked, concurrencies=concurrencies, records=kept, report=lambda _: None)
    return kept


def vllm_pages(calls: int) -> dict[str, str]:
    """Return what a vLLM says of itself after so many calls of 100 prompt tokens, 80 of them cached, and one more."""
    labels = '{engine="0",model_name="tiny"}'
    metrics = (
        f"vllm:prefix_cache_queries_total{labels} {calls * 100}.0\n"
        f"vllm:prefix_cache_hits_total{labels} {calls * 80}.0\n"
        f"vllm:request_success_total{labels} {calls}.0\nvllm:num_preemptions_total{labels} 0.0\n"
        'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0"} 1.0\n'
    )
    listed = {"object": "list", "data": [{"id": "tiny", "root": "/models/tiny-awq", "max_model_len": 2048}]}
    return {"/metrics": metrics, "/version": '{"version": "0.32.0"}', "/v1/models": json.dumps(listed)}


@pytest.mark.anyio
class TestCommand:
    async def test_a_run_leaves_a_file_of_the_documented_form_with_what_the_server_said_and_cost(
        self, bench: Bench, server: OpenAiServer
    ) -> None:
        told = 0

        def reply(body: dict[str, Any]) -> tuple[str, ...]:
            nonlocal told
            told += 1
            server.pages = vllm_pages(told)
            return ("One", " two", " three", " four.")

        server.reply, server.pages, server.api_key = reply, vllm_pages(0), KEY
        server.prompt_tokens, server.cached_tokens, server.finish_reason = 100, 80, "length"
        smi = bench.folder / "nvidia-smi"
        smi.write_text(SMI, encoding="utf-8")
        smi.chmod(0o755)
        bench.env["PATH"] = f"{bench.folder}:{bench.env['PATH']}"
        arguments = ("--url", server.base_url, "--model", "org/tiny", "--api-key-file", "-", "--concurrency", "1,3")
        load = ("--requests", 5, "--max-tokens", 4, "--shared-words", 30, "--own-words", 5, "--tenants", 2)
        prices = ("--price", "1,0.1,2", "--machine-hour", "3.60", "--remark", "awq, --max-num-seqs 64")
        _, out, err = await bench.run(*arguments, *load, *prices, "--json", given=f"{KEY}\n".encode())
        result = json.loads(out)
        check_form(result)
        (written,) = bench.results()
        assert json.loads(written.read_text(encoding="utf-8")) == result
        assert re.fullmatch(r"llm-org-tiny-\d{8}T\d{6}Z\.json", written.name)
        assert KEY not in out + err
        assert result["complete"] is True
        assert result["target"] == {
            "url": server.base_url,
            "kind": "vllm",
            "model": "org/tiny",
            "on_this_machine": True,
        }
        assert result["server"] == {
            "version": "0.32.0",
            "models": [{"id": "tiny", "root": "/models/tiny-awq", "max_model_len": 2048}],
            "counters": True,
            "cache_config": {"block_size": "16", "cache_dtype": "auto"},
        }
        assert result["machine"]["gpus"] == [
            {"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "driver": "570.86.15"},
            {"name": "NVIDIA H100 80GB HBM3", "memory_mib": None, "driver": "570.86.15"},
        ]
        assert result["remarks"] == ["awq, --max-num-seqs 64"]
        assert result["prices"] == {
            "input": "1", "cached_input": "0.1", "output": "2", "second": "0", "machine_hour": "3.60",
        }  # fmt: skip
        for level, concurrency in zip(result["levels"], (1, 3), strict=True):
            assert (level["concurrency"], level["finished"], level["failed"], level["cut_off"]) == (
                concurrency,
                5,
                0,
                0,
            )
            assert level["tokens"] == {"prompt": 500, "cached": 400, "completion": 20, "calls_without_usage": 0}
            assert level["prefix_cache"] == {"by_usage": 0.8, "by_server": 0.8}
            assert (level["requests_of_others"], level["preemptions"], level["cut_by_length"]) == (0, 0, 5)
            assert level["first_token_ms"]["count"] == level["total_ms"]["count"] == 5
            assert level["between_pieces_ms"]["count"] == 15
            assert level["tokens_per_piece"] == 1.0
            # (20 x 1 + 80 x 0.1 + 4 x 2) / 1 000 000 a call
            assert level["costs"]["tokens_per_1000_requests"] == "0.036000"
            assert Decimal(level["costs"]["machine_per_1000_requests"]) > 0
        self.check_requests(server.requests, run=result["load"]["run"])

    def check_requests(self, requests: list[dict[str, Any]], *, run: str) -> None:
        """A server of vLLM's kind is sent a salt for each level and tenant, and no prompt comes twice."""
        assert len(requests) == 3 + 5 + 5
        assert all(request["max_tokens"] == 4 and request["model"] == "org/tiny" for request in requests)
        assert len({json.dumps(request["messages"]) for request in requests}) == len(requests)
        beginnings = {request["cache_salt"]: request["messages"][0]["content"] for request in requests}
        levels = ("warm-up", "0-1", "1-3")
        assert set(beginnings) == {f"bench-{run}-{level}-{tenant}" for level in levels for tenant in (0, 1)}
        assert len(set(beginnings.values())) == len(beginnings)
        for request in requests:
            assert request["messages"][0]["content"] == beginnings[request["cache_salt"]]

    async def test_ctrl_c_keeps_what_was_measured_and_says_that_it_is_not_whole(
        self, bench: Bench, server: OpenAiServer
    ) -> None:
        under_way, asked = anyio.Event(), 0

        def reply(body: dict[str, Any]) -> tuple[str, ...]:
            nonlocal asked
            asked += 1
            if asked == 11:
                under_way.set()
            return ("One", " two.")

        server.reply = reply
        server.faults.extend([Fault()] * 9 + [Fault(stall_after=1)] * 2)
        arguments = ("--url", server.base_url, "--model", "tiny", "--warm-up", 0, "--concurrency", "2,4", "--json")
        with anyio.fail_after(BOUND_S):
            process = await anyio.open_process(
                bench.command(*arguments), env=bench.env, cwd=bench.folder, stderr=subprocess.DEVNULL
            )
            async with process:
                await under_way.wait()
                process.send_signal(signal.SIGINT)
                assert process.stdout is not None
                out = b"".join([part async for part in process.stdout])
                assert await process.wait() == 130
            await server.abandoned.wait()
        result = json.loads(out)
        check_form(result)
        (written,) = bench.results()
        assert json.loads(written.read_text(encoding="utf-8")) == result
        (level,) = result["levels"]
        assert (result["complete"], level["complete"]) == (False, False)
        assert (level["finished"], level["cut_off"], level["failed"]) == (9, 2, 0)
        assert "broken off" in result["notes"][0]

    async def test_a_server_that_refuses_everything_ends_the_command_with_its_reason(
        self, bench: Bench, server: OpenAiServer
    ) -> None:
        server.api_key = KEY
        status, _, err = await bench.run("--url", server.base_url, "--model", "tiny", check=False)
        assert status == 1
        assert "unavailable: the model server answers no request" in err
        assert "401" in err
        assert (bench.results(), len(server.requests)) == ([], 3)

    async def test_figures_that_their_file_does_not_take_are_printed(self, bench: Bench, server: OpenAiServer) -> None:
        arguments = ("--url", server.base_url, "--model", "tiny", "--concurrency", 1, "--requests", 2)
        status, out, err = await bench.run(*arguments, "--results", "/dev/full", check=False)
        assert (status, json.loads(out)["levels"][0]["finished"]) == (1, 2)
        assert "printed instead" in err

    async def test_the_table_is_for_people_and_notes_what_failed(self, bench: Bench, server: OpenAiServer) -> None:
        server.faults.append(Fault(status=500))
        path = bench.folder / "deep" / "er.json"
        arguments = ("--url", server.base_url, "--model", "tiny", "--warm-up", 0, "--concurrency", 1, "--requests", 3)
        _, out, err = await bench.run(*arguments, "--kind", "ollama", "--results", path)
        assert "first token" in out
        assert "er.json" in out
        assert "failed calls are in no figure: 1 x the model server failed (HTTP 500)" in err
        result = json.loads(path.read_text(encoding="utf-8"))
        check_form(result)
        assert (result["target"]["kind"], result["prices"], result["machine"]["gpus"]) == ("ollama", None, [])
        assert result["levels"][0]["costs"] is None
        assert all("cache_salt" not in request for request in server.requests)


@pytest.mark.anyio
class TestMeasuring:
    async def test_a_level_has_so_many_calls_at_a_time_and_no_more(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        """Four calls hang; a fifth would have been answered. What was measured before is kept when it is cancelled."""
        all_there, asked = anyio.Event(), 0

        def reply(body: dict[str, Any]) -> tuple[str, ...]:
            nonlocal asked
            asked += 1
            if asked == 6:
                all_there.set()
            return ("One", " two.")

        server.reply = reply
        server.faults.extend([Fault()] * 2 + [Fault(stall_after=1)] * 4)
        records: list[LevelRecord] = []
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(run_levels, client, at(server), plan(requests=50), 4, 8, records=records))
                await all_there.wait()
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        (record,) = records
        assert len(server.requests) == 6
        assert (record.started, len(record.calls), record.complete) == (6, 2, False)
        found = figures(record, price=None, machine_hour=None)
        assert (found.finished, found.failed, found.cut_off) == (2, 0, 4)

    async def test_calls_that_fail_are_counted_by_what_went_wrong_and_the_level_goes_on(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        server.faults.extend([Fault(status=500), Fault(status=429), Fault(cut_after=1), Fault(status=500)])
        (record,) = await run_levels(client, at(server), plan(), 1)
        assert (record.started, len(record.calls), record.complete) == (6, 2, True)
        assert sorted(record.failures.values()) == [1, 1, 2]
        assert all("tiny" not in what and server.base_url not in what for what in record.failures)

    async def test_a_level_whose_time_is_over_begins_no_call(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        (record,) = await run_levels(client, at(server), plan(seconds=0.0), 2)
        assert (record.started, record.complete, server.requests) == (0, True, [])

    async def test_a_server_without_counters_is_measured_all_the_same(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        (record,) = await run_levels(client, at(server), plan(), 2)
        assert record.counters is None
        found = figures(record, price=None, machine_hour=None)
        assert (found.finished, found.prefix_cache.by_server, found.requests_of_others) == (6, None, None)

    async def test_requests_of_others_meanwhile_are_told(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        told = 0

        def reply(body: dict[str, Any]) -> tuple[str, ...]:
            nonlocal told
            told += 2
            server.pages = vllm_pages(told)
            return ("One.",)

        server.reply, server.pages = reply, vllm_pages(0)
        (record,) = await run_levels(client, at(server), plan(), 1)
        assert figures(record, price=None, machine_hour=None).requests_of_others == 6

    async def test_a_warm_up_that_nothing_answers_says_why(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        server.faults.extend([Fault(status=404)] * 3)
        with pytest.raises(Unavailable, match="404"):
            await warm_up(client, at(server), plan())

    async def test_one_answer_is_warm_up_enough(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        server.faults.extend([Fault(status=503)] * 2)
        await warm_up(client, at(server), plan())
        assert len(server.requests) == 3


class TestPlan:
    def test_a_level_has_enough_calls_for_a_p99_and_for_its_concurrency(self) -> None:
        asked = plan(requests=None)
        assert [asked.requests_at(count) for count in (1, 16, 64)] == [MIN_REQUESTS, 128, 64 * PER_PLACE]
        assert plan(requests=7).requests_at(64) == 7


class TestTarget:
    def target(self, **told: Any) -> Target:
        return replace(Target(url=None, model=None, offer=None, kind=AUTO, key_file=None, price=None), **told)

    @pytest.mark.parametrize(
        "told",
        [
            {},
            {"url": "http://localhost:8000/v1"},
            {"model": "tiny"},
            {"offer": "tiny", "url": "http://localhost:8000/v1"},
        ],
    )
    def test_options_that_name_no_server_or_two_are_refused(self, told: dict[str, str]) -> None:
        with pytest.raises(click.UsageError):
            offer_of(Settings.from_env({}), self.target(**told))

    @pytest.mark.parametrize(
        "url", ["localhost:8000", "ftp://host/v1", "http://", "http://u:p@host/v1", "http://h/v1?key=1"]
    )
    def test_a_url_that_is_none_or_carries_a_secret_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidInput):
            offer_of(Settings.from_env({}), self.target(url=url, model="tiny"))

    def test_the_configured_server_is_measured_where_none_is_named(self) -> None:
        settings = Settings.from_env({"BULKHEAD_LLM_URL": "http://127.0.0.1:1/v1", "BULKHEAD_LLM_MODEL": "tiny"})
        found = offer_of(settings, self.target(price=(Decimal("0.5"), Decimal("0.1"), Decimal(2)), kind="vllm"))
        assert (found.endpoint.base_url, found.endpoint.kind, found.served_name) == (settings.llm_url, "vllm", "tiny")
        assert found.price is not None
        assert (found.price.input, found.price.output, found.price.second) == (Decimal("0.5"), Decimal(2), 0)

    @pytest.mark.anyio
    async def test_an_offer_of_the_catalogue_comes_with_its_server_its_name_there_and_its_price(
        self, world: World
    ) -> None:
        async with world.operator() as verbs:
            catalogue = CatalogueOperator(database=verbs.database)
            await catalogue.add_model("house-model", tier=Tier.SMALL, context_tokens=2048)
            for number in (1, 2):
                await catalogue.add_endpoint(f"gpu-{number}", url=f"http://127.0.0.1:{number}/v1", kind="vllm")
                await catalogue.offer("house-model", f"gpu-{number}", served_name=f"tiny-{number}")

        async def find(reference: str) -> Offer:
            return await anyio.to_thread.run_sync(offer_of, world.settings, self.target(offer=reference))

        found = await find("house-model@gpu-2")
        assert (found.served_name, found.endpoint.base_url) == ("tiny-2", "http://127.0.0.1:2/v1")
        with pytest.raises(InvalidInput, match="house-model@gpu-1, house-model@gpu-2"):
            await find("house-model")
        with pytest.raises(NotFound, match="house-model@gpu-1"):
            await find("other")


class TestCommittedResults:
    def test_the_schema_is_one(self) -> None:
        jsonschema.Draft202012Validator.check_schema(schema())

    def test_every_committed_result_has_the_documented_form_and_is_whole(self) -> None:
        for path in self.committed():
            result = json.loads(path.read_text(encoding="utf-8"))
            check_form(result)
            assert result["complete"], path.name
            assert result["code"]["changed_since_commit"] is False, path.name

    def test_the_page_says_that_no_gpu_was_measured_exactly_as_long_as_none_was(self) -> None:
        measured = any(json.loads(path.read_text(encoding="utf-8"))["machine"]["gpus"] for path in self.committed())
        page = (COMMITTED / "README.md").read_text(encoding="utf-8")
        assert ("Not measured on a GPU yet" in page) is not measured

    def committed(self) -> list[Path]:
        return [path for path in sorted(COMMITTED.glob("*.json")) if path.name != "schema.json"]

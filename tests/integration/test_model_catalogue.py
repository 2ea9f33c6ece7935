"""The catalogue of models is an operator's data: the worker reads and follows it, and nobody else has any of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import asyncpg
import pytest
from click.testing import CliRunner, Result

from rag.catalogue.configured import of_settings
from rag.catalogue.operator import CatalogueOperator
from rag.catalogue.store import CatalogueCache, read_catalogue, read_known, read_rules
from rag.cli import cli
from rag.db.pool import Database, Session
from rag.errors import BulkheadError, Conflict, InvalidInput, Misconfigured, NotFound, SealRefused, Unavailable
from rag.llm.catalogue import Catalogue, Tier
from rag.llm.routing import Features, Rule, When, required_tier
from rag.tenants.operator import Tenant
from rag.tenants.operator import Tier as Booked
from tests.support.callers import Hand
from tests.support.world import Cluster, World
from tests.support.world import world as new_world

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
TABLES = ("llm_endpoint", "llm_model", "llm_model_tenant", "llm_offer", "llm_price", "routing_rule")


@pytest.fixture(scope="module", name="shared")
async def shared_fixture(cluster: Cluster) -> AsyncGenerator[tuple[World, list[asyncpg.Record]]]:
    """One database for the tests of this file, and the rules that it is shipped with."""
    async with new_world(cluster) as made:
        yield made, await rows_of(made.superuser_url, "select * from rag.routing_rule")


@pytest.fixture(name="world")
async def world_fixture(shared: tuple[World, list[asyncpg.Record]]) -> World:
    """The shared database as it is shipped, without tenants."""
    made, shipped = shared
    connection = await asyncpg.connect(made.superuser_url)
    try:
        await connection.execute(f"truncate {', '.join(f'rag.{table}' for table in TABLES)}")
        await connection.execute("delete from rag.tenant")
        insert = "insert into rag.routing_rule values ($1, $2, $3, $4)"
        await connection.executemany(insert, [tuple(rule) for rule in shipped])
    finally:
        await connection.close()
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Database):
    """The real database, and how often it was asked."""

    asked: list[str] = field(default_factory=list[str])

    @asynccontextmanager
    async def unsafe_unscoped(self, *, reason: str) -> AsyncGenerator[Session]:
        self.asked.append(reason)
        async with Database.unsafe_unscoped(self, reason=reason) as session:
            yield session


@asynccontextmanager
async def watched(world: World) -> AsyncGenerator[Watched]:
    async with world.database(claims=True) as database:
        yield Watched(pool=database.pool, sealer=database.sealer, dsn=database.dsn)


@asynccontextmanager
async def verbs(world: World) -> AsyncGenerator[CatalogueOperator]:
    async with world.operator() as operator:
        yield CatalogueOperator(database=operator.database)


@asynccontextmanager
async def kept(world: World) -> AsyncGenerator[CatalogueOperator]:
    """Yield an operator whose catalogue has a model at two endpoints, one of them with a price."""
    async with verbs(world) as operator:
        await operator.add_endpoint("gpu", url="http://gpu:8000/v1/", kind="vllm")
        await operator.add_endpoint("hosted", url="https://api.example.com/v1", kind="openai")
        await operator.add_model("qwen", tier=Tier.MEDIUM, context_tokens=32_768, tiers=["pro"])
        await operator.offer("qwen", "gpu", served_name="Qwen/Qwen3-8B", priority=1)
        await operator.offer("qwen", "hosted", priority=2)
        await operator.add_price(
            "qwen", "gpu", input=Decimal("0.5"), cached_input=Decimal("0.05"), output=Decimal("1.500001")
        )
        yield operator


async def rows_of(dsn: str | None, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def test_the_worker_reads_what_an_operator_has_written(world: World) -> None:
    acme = await world.tenant("acme")
    async with kept(world) as operator, world.database(claims=True) as database:
        await operator.allow("qwen", tiers=["enterprise"], tenant_ids=[acme.tenant_id])
        first, second = (await read_catalogue(database)).offers
        assert (first.endpoint.base_url, first.endpoint.kind) == ("http://gpu:8000/v1", "vllm")
        assert (first.served_name, second.served_name) == ("Qwen/Qwen3-8B", "qwen")
        assert first.model is second.model
        assert (first.model.tier, first.model.context_tokens) == (Tier.MEDIUM, 32_768)
        assert first.model.tiers == {"pro", "enterprise"}
        assert first.model.tenants == {acme.tenant_id}
        assert second.price is None
        assert first.price is not None
        assert (first.price.input, first.price.output, first.price.second) == (Decimal("0.5"), Decimal("1.500001"), 0)
        await operator.deny("qwen", tiers=["enterprise"], tenant_ids=[acme.tenant_id])
        model = (await read_catalogue(database)).models()["qwen"]
        assert (model.tiers, model.tenants) == ({"pro"}, frozenset())


async def test_a_model_is_nobodys_before_an_operator_says_whose(world: World) -> None:
    acme = await world.tenant("acme")
    async with verbs(world) as operator, world.database(claims=True) as database:
        await operator.add_endpoint("gpu", url="http://gpu/v1", kind="vllm")
        await operator.add_model("new", tier=Tier.SMALL, context_tokens=8192)
        await operator.offer("new", "gpu")
        catalogue = await read_catalogue(database)
        assert len(catalogue.offers) == 1
        for tier in Booked:
            assert catalogue.allowed(acme.tenant_id, tier.value) == ()


async def test_the_faces_read_nothing_of_it_and_no_server_writes_it(world: World) -> None:
    async with kept(world), world.database() as database:
        with pytest.raises(SealRefused):
            await read_catalogue(database)
        for table in TABLES:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await rows_of(world.settings.database_url, f"select * from rag.{table}")
            for statement in (f"delete from rag.{table}", f"insert into rag.{table} select * from rag.{table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await rows_of(world.settings.worker_database_url, statement)


async def test_a_price_is_never_changed_or_deleted_and_what_it_explains_stays(world: World) -> None:
    async with kept(world) as operator:
        for statement in ("update rag.llm_price set input = 0", "delete from rag.llm_price", "truncate rag.llm_price"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await rows_of(world.settings.maintenance_database_url, statement)
        with pytest.raises(Conflict, match="explains what was charged"):
            await operator.remove_model("qwen")
        with pytest.raises(Conflict, match="--disable"):
            await operator.remove_endpoint("gpu")
        await operator.withdraw("qwen", "gpu")
        assert [one.endpoint for one in await operator.prices("qwen")] == ["gpu"]
        await operator.offer("qwen", "gpu", priority=1)
        (model,) = await operator.models()
        assert [one.price is not None for one in model.offers] == [True, False]


async def test_the_newest_price_that_has_begun_is_the_one_that_is_valid(world: World) -> None:
    async with kept(world) as operator, world.database(claims=True) as database:
        later = datetime.now(UTC) + timedelta(days=1)

        async def priced(told: int, endpoint: str = "gpu", valid_from: datetime | None = None) -> UUID:
            return await operator.add_price(
                "qwen",
                endpoint,
                input=Decimal(told),
                cached_input=Decimal(0),
                output=Decimal(9),
                valid_from=valid_from,
            )

        await priced(7, valid_from=later)
        (first, _) = (await read_catalogue(database)).offers
        assert first.price is not None
        assert first.price.input == Decimal("0.5"), "tomorrow's is not valid today"
        now = await priced(2)
        (first, _) = (await read_catalogue(database)).offers
        assert first.price is not None
        assert (first.price.price_id, first.price.input) == (now, Decimal(2))
        assert [one.price.input for one in await operator.prices("qwen")] == [Decimal(7), Decimal(2), Decimal("0.5")]
        with pytest.raises(Conflict, match="from that moment"):
            await priced(8, valid_from=later)
        with pytest.raises(InvalidInput, match="cannot begin in the past"):
            await priced(1, valid_from=datetime.now(UTC))
        with pytest.raises(NotFound, match="does not serve that model"):
            await priced(1, endpoint="nowhere")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (("0.0000001", "0", "1"), "up to 6 decimal places"),
        (("1", "0", "NaN"), "a price is 0 to"),
        (("1", "0", "-1"), "a price is 0 to"),
        (("1", "0", "1000000001"), "a price is 0 to"),
        (("1", "2", "3"), "no dearer than input"),
    ],
)
async def test_a_price_that_cannot_be_is_refused_and_not_rounded(
    world: World, numbers: tuple[str, str, str], message: str
) -> None:
    told, cached, output = map(Decimal, numbers)
    async with kept(world) as operator:
        with pytest.raises(InvalidInput, match=message):
            await operator.add_price("qwen", "gpu", input=told, cached_input=cached, output=output)


async def test_what_is_not_of_its_form_is_refused_by_name(world: World) -> None:
    async with kept(world) as operator:
        refused: list[tuple[Callable[[], Any], type[BulkheadError], str]] = [
            (lambda: operator.add_endpoint("gpu", url="http://x/v1", kind="openai"), Conflict, "of that name"),
            (lambda: operator.add_endpoint("GPU", url="http://x/v1", kind="openai"), InvalidInput, "a-z, 0-9"),
            (lambda: operator.add_endpoint("x", url="ftp://x/v1", kind="openai"), InvalidInput, "begins with http"),
            (lambda: operator.add_endpoint("x", url="http://u:p@x/v1", kind="openai"), InvalidInput, "no user"),
            (lambda: operator.add_endpoint("x", url="http://x/v1?key=1", kind="openai"), InvalidInput, "query"),
            (lambda: operator.add_endpoint("x", url="http://x/v1", kind="tgi"), InvalidInput, "vllm, openai or ollama"),
            (lambda: operator.add_endpoint("x", url="http://x/api", kind="vllm"), InvalidInput, "ends in /v1"),
            (lambda: operator.set_endpoint("gpu", url="http://x/api"), InvalidInput, "ends in /v1"),
            (lambda: operator.set_endpoint("x", enabled=False), NotFound, "no such endpoint"),
            (lambda: operator.add_model("qwen", tier=Tier.SMALL, context_tokens=1), Conflict, "of that name"),
            (lambda: operator.add_model("-", tier=Tier.SMALL, context_tokens=1), InvalidInput, "starts with a letter"),
            (lambda: operator.add_model("x", tier=Tier.SMALL, context_tokens=0), InvalidInput, "context is 1 to"),
            (lambda: operator.set_model("x", tier=Tier.SMALL), NotFound, "no such model"),
            (lambda: operator.offer("x", "gpu"), NotFound, "no such model"),
            (lambda: operator.offer("qwen", "x"), NotFound, "no such endpoint"),
            (lambda: operator.withdraw("qwen", "x"), NotFound, "does not serve"),
            (lambda: operator.allow("x", tiers=["pro"]), NotFound, "no such model"),
        ]
        for attempt, error, message in refused:
            with pytest.raises(error, match=message):
                await attempt()


async def test_a_change_is_followed_within_half_a_minute_and_a_crowd_asks_once(world: World) -> None:
    clock = Hand()
    async with kept(world) as operator, watched(world) as database:
        cache, found = CatalogueCache(database, clock=clock), list[int]()

        async def ask() -> None:
            found.append(len((await cache()).catalogue.offers))

        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as crowd:
                for _ in range(50):
                    crowd.start_soon(ask)
            assert (found, len(database.asked)) == ([2] * 50, 1)
            await operator.set_endpoint("gpu", enabled=False)
            clock.now += 29.0
            assert len((await cache()).catalogue.offers) == 2
            clock.now += 1.0
            assert [one.endpoint.name for one in (await cache()).catalogue.offers] == ["hosted"]
            assert len(database.asked) == 2


async def test_while_the_database_is_away_what_is_known_goes_on_and_what_is_not_is_refused(cluster: Cluster) -> None:
    clock = Hand()
    async with new_world(cluster) as world, kept(world), watched(world) as database:
        cache = CatalogueCache(database, clock=clock)
        await cache()
        admin = await asyncpg.connect(world.superuser_url)
        name = await admin.fetchval("select current_database()")
        await admin.execute(f'alter database "{name}" connection limit 0')
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            name,
        )
        await admin.close()
        with anyio.fail_after(BOUND_S):
            clock.now += 31.0
            before = len(database.asked)
            assert [len((await cache()).catalogue.offers) for _ in range(5)] == [2] * 5
            assert len(database.asked) == before + 1, "one asks, the others go on"
            with pytest.raises(Unavailable):
                await CatalogueCache(database, clock=clock)()


async def test_the_configured_model_stands_in_only_for_a_catalogue_that_is_not_kept(world: World) -> None:
    configured = of_settings("http://one/v1", "one", None)
    async with verbs(world) as operator, world.database(claims=True) as database:
        assert await read_catalogue(database) == Catalogue()
        assert await read_catalogue(database, otherwise=configured) == configured
        await operator.add_endpoint("gpu", url="http://gpu/v1", kind="vllm")
        assert await read_catalogue(database, otherwise=configured) == configured, "there is no model yet"
        await operator.add_model("m", tier=Tier.SMALL, context_tokens=1000, tiers=["free"])
        await operator.offer("m", "gpu")
        await operator.set_endpoint("gpu", enabled=False)
        assert await read_catalogue(database, otherwise=configured) == Catalogue(), "turned off is turned off"


async def test_a_key_goes_to_the_url_that_stands_beside_it_and_follows_its_file(world: World, tmp_path: Path) -> None:
    keys, clock = tmp_path / "keys.json", Hand()
    (tmp_path / "hosted.key").write_text("sk-first\n", encoding="utf-8")
    keys.write_text(
        json.dumps([{"url": "https://api.example.com/v1/", "api_key_file": "hosted.key"}]), encoding="utf-8"
    )
    async with kept(world) as operator, world.database(claims=True) as database:
        cache = CatalogueCache(database, keys_file=keys, clock=clock)

        async def told() -> dict[str, str | None]:
            clock.now += 31.0
            return {one.endpoint.name: one.endpoint.api_key for one in (await cache()).catalogue.offers}

        assert await told() == {"gpu": None, "hosted": "sk-first"}
        assert "sk-first" not in repr(await cache())
        (tmp_path / "hosted.key").write_text("sk-second", encoding="utf-8")
        assert await told() == {"gpu": None, "hosted": "sk-second"}
        keys.write_text("[", encoding="utf-8")
        assert await told() == {"gpu": None, "hosted": "sk-second"}, "a file that is being written changes nothing"
        with pytest.raises(Misconfigured, match="BULKHEAD_LLM_KEYS_FILE"):
            await CatalogueCache(database, keys_file=keys, clock=clock)()
        keys.write_text("[]", encoding="utf-8")
        assert await told() == {"gpu": None, "hosted": None}
        (tmp_path / "hosted.key").write_text("sk-third", encoding="utf-8")
        keys.write_text(json.dumps([{"url": "https://api.example.com/v1", "api_key_file": "hosted.key"}]), "utf-8")
        await operator.set_endpoint("hosted", url="https://elsewhere.example.com/v1")
        assert await told() == {"gpu": None, "hosted": None}, "whoever moves an endpoint does not get its key"


async def test_the_rules_that_are_shipped_ask_for_more_where_more_is_asked(world: World) -> None:
    async with world.database(claims=True) as database:
        rules = await read_rules(database)
    asked = {
        "what": Features(workflow="rag", step="answer", question="What is the term of a patent?"),
        "why": Features(workflow="rag", step="answer", question="Why was it refused?"),
        "compare": Features(workflow="compare", step="answer", question="the term"),
        "plan": Features(workflow="research", step="plan", question="the term"),
        "section": Features(workflow="research", step="answer", question="the term"),
        "action": Features(workflow="react", step="action", question="the term"),
        "much": Features(workflow="rag", step="answer", question="the term", prompt_chars=30_000),
    }
    assert {name: required_tier(rules, features)[0].name for name, features in asked.items()} == {
        "what": "SMALL",
        "why": "MEDIUM",
        "compare": "MEDIUM",
        "plan": "LARGE",
        "section": "SMALL",
        "action": "LARGE",
        "much": "MEDIUM",
    }


async def test_rules_are_replaced_as_a_whole_or_not_at_all(world: World) -> None:
    rules = (Rule(name="all", tier=Tier.LARGE), Rule(name="words", tier=Tier.SMALL, when=When(any_words=("why",))))
    async with verbs(world) as operator, world.database(claims=True) as database:
        shipped = await read_rules(database)
        with pytest.raises(InvalidInput, match="two rules"):
            await operator.set_rules([*rules, *rules])
        assert await read_rules(database) == shipped
        await operator.set_rules(rules)
        assert await read_rules(database) == rules
        await operator.set_rules(())
        assert await read_rules(database) == ()


async def test_a_stored_rule_that_is_not_understood_is_not_left_out(world: World) -> None:
    clock = Hand()
    async with kept(world), world.database(claims=True) as database:
        cache = CatalogueCache(database, clock=clock)
        before = await cache()
        statement = "insert into rag.routing_rule values (99, 'of tomorrow', 3, '{\"mood\": \"grave\"}')"
        await rows_of(world.settings.maintenance_database_url, statement)
        with pytest.raises(Misconfigured, match="unknown 'mood'"):
            await read_known(database)
        clock.now += 31.0
        assert await cache() == before


async def bulkhead(world: World, *arguments: str, status: int = 0) -> str:
    """Run a verb in this process and return what it printed."""

    def run() -> Result:
        return CliRunner().invoke(cli, arguments, env=world.settings.to_env())

    with anyio.fail_after(BOUND_S):
        done = await anyio.to_thread.run_sync(run)
    if status:
        assert isinstance(done.exception, BulkheadError), done.output
        return done.exception.message
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


async def told(world: World, *arguments: str) -> Any:
    return json.loads(await bulkhead(world, *arguments, "--json"))


async def booked(world: World, name: str, tier: Booked) -> Tenant:
    async with world.operator() as operator:
        return await operator.create_tenant(name, tier=tier)


async def stocked(world: World) -> None:
    """Fill a catalogue by the verbs."""
    for line in (
        "add-endpoint gpu --url http://gpu:8000/v1 --kind vllm",
        "add-endpoint hosted --url https://api.example.com/v1",
        "add small --tier small --context 8192 --for free --for pro",
        "add large --tier large --context 128000",
        "offer small gpu --as Qwen/Qwen3-1.7B --priority 1",
        "offer large hosted",
        "price small gpu --input 0.1 --cached-input 0.01 --output 0.3 --second 0.000002",
        "price large hosted --input 3 --output 15",
        "allow large --tier enterprise --tenant bank",
    ):
        await bulkhead(world, "models", *line.split())


async def test_an_operator_keeps_the_catalogue_from_the_command_line(world: World) -> None:
    await booked(world, "bank", Booked.PRO)
    await stocked(world)
    small, large = await told(world, "models", "list")
    assert (small["model"], small["tier"], small["tiers"], small["tenants"]) == ("small", "small", ["free", "pro"], [])
    assert (large["tiers"], large["tenants"]) == (["enterprise"], ["bank"])
    price = small["offers"][0]["price"]
    assert (price["input"], price["cached_input"], price["second"]) == ("0.1", "0.01", "0.000002")
    assert large["offers"][0]["price"]["cached_input"] == "3", "without a discount told there is none"
    shown = await bulkhead(world, "models", "list")
    assert "0.1/0.01/0.3 + 0.000002/s" in shown
    assert "enterprise bank" in shown
    await bulkhead(world, "models", "set", "small", "--tier", "medium")
    await bulkhead(world, "models", "deny", "large", "--tenant", "bank")
    await bulkhead(world, "models", "set-endpoint", "gpu", "--disable")
    small, large = await told(world, "models", "list")
    assert (small["tier"], large["tenants"], small["offers"][0]["enabled"]) == ("medium", [], False)
    assert "(disabled)" in await bulkhead(world, "models", "list")
    endpoints = await told(world, "models", "endpoints")
    assert [(one["name"], one["kind"], one["enabled"]) for one in endpoints] == [
        ("gpu", "vllm", False),
        ("hosted", "openai", True),
    ]
    assert "disabled" in await bulkhead(world, "models", "endpoints")
    await bulkhead(world, "models", "price", "large", "hosted", "--input", "2", "--output", "9", "--from", "2099-01-01")
    assert [one["input"] for one in await told(world, "models", "prices", "large")] == ["2", "3"]
    assert "2099-01-01T00:00:00+00:00" in await bulkhead(world, "models", "prices", "large")
    await bulkhead(world, "models", "withdraw", "large", "hosted")
    assert "nowhere" in await bulkhead(world, "models", "list")
    await bulkhead(world, "models", "add", "typo", "--tier", "small", "--context", "1")
    await bulkhead(world, "models", "remove", "typo")
    await bulkhead(world, "models", "add-endpoint", "typo", "--url", "http://typo/v1")
    await bulkhead(world, "models", "remove-endpoint", "typo")
    for words in ("set-endpoint gpu", "set small", "allow small", "price large gpu --input 1 --output 1 --from soon"):
        assert await bulkhead(world, "models", *words.split(), status=1)


async def test_a_route_is_explained_for_a_tenant_and_by_rules_of_ones_own(world: World, tmp_path: Path) -> None:
    await booked(world, "bank", Booked.PRO)
    await booked(world, "shop", Booked.FREE)
    await stocked(world)
    plain = await told(world, "route", "--explain", "What is the term of a patent?", "--tenant", "bank")
    assert (plain["required"], plain["tier"], plain["downgraded"]) == ("small", "small", False)
    assert [one["model"] for one in plain["offers"]] == ["small", "large"]
    plan = ("route", "--explain", "the term", "--workflow", "research", "--step", "plan")
    own = await told(world, *plan, "--tenant", "bank")
    assert (own["tier"], [one["model"] for one in own["passed_over"]]) == ("large", ["small"])
    other = await told(world, *plan, "--tenant", "shop")
    assert (other["tier"], other["offers"]) == (None, [])
    assert other["reasons"][-1] == "no model of tier large or above is to be had"
    less = await told(world, *plan, "--tenant", "shop", "--allow-downgrade")
    assert (less["tier"], less["downgraded"], less["offers"][0]["downgrade"]) == ("small", True, True)
    shown = await bulkhead(world, *plan, "--tenant", "shop", "--allow-downgrade")
    assert "below what is required" in shown
    assert "the rule 'plans what to research' asks for large" in shown
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"name": "long", "tier": "large", "when": {"min_question_chars": 5}}]), "utf-8")
    by_own = await told(world, "route", "--explain", "What is it?", "--tenant", "bank", "--rules", str(rules))
    assert (by_own["required"], by_own["reasons"]) == ("large", ["the rule 'long' asks for large"])
    longer = await told(
        world, "route", "--explain", "x", "--tenant", "shop", "--prompt-chars", "20000", "--max-tokens", "8000"
    )
    assert "do not fit" in longer["passed_over"][-1]["why"]
    assert "needs --tenant" in await bulkhead(world, "route", "--explain", "x", status=1)
    assert "say which" in await bulkhead(world, "route", status=1)
    rules.write_text("no", "utf-8")
    assert "no JSON" in await bulkhead(world, *plan, "--tenant", "shop", "--rules", str(rules), status=1)


async def test_the_configured_model_is_what_a_route_explains_where_no_catalogue_is_kept(world: World) -> None:
    await world.tenant("shop")
    assert "there is no model" in await bulkhead(world, "route", "--explain", "x", "--tenant", "shop", status=1)
    env = world.settings.to_env() | {
        "BULKHEAD_LLM_URL": "http://gpu/v1",
        "BULKHEAD_LLM_MODEL": "one",
        "BULKHEAD_LLM_PRICES": "1,0.1,2",
    }
    arguments = ["route", "--explain", "x", "--tenant", "shop", "--json"]
    done = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, arguments, env=env))
    assert done.exit_code == 0, done.output
    (offer,) = json.loads(done.output)["offers"]
    assert (offer["model"], offer["tier"], offer["endpoint"]) == ("one", "large", "configured")
    assert offer["price"]["cached_input"] == "0.1"


async def test_rules_are_shown_as_they_are_read_and_replayed_before_they_are_set(world: World, tmp_path: Path) -> None:
    await booked(world, "bank", Booked.PRO)
    await stocked(world)
    file = tmp_path / "rules.json"
    shipped = await told(world, "models", "rules", "show")
    file.write_text(json.dumps([*shipped, {"name": "answers", "tier": "large", "when": {"step": ["answer"]}}]), "utf-8")
    recording = tmp_path / "calls.jsonl"
    call = {
        "features": {"workflow": "rag", "step": "answer", "question": "What?", "prompt_chars": 4000, "passages": 3},
        "required": "small",
        "model": "small",
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "milliseconds": 2000,
        "cost": "0.000134",
    }
    recording.write_text("\n".join([json.dumps(call)] * 3 + [""]), "utf-8")
    same = await told(world, "route", "--replay", str(recording))
    assert (same["calls"], same["moved"], Decimal(same["difference"])) == (3, 0, 0)
    dearer = await told(world, "route", "--replay", str(recording), "--rules", str(file))
    assert (dearer["moved"], dearer["raised"]) == (3, 3)
    assert Decimal(dearer["cost"]) == Decimal("0.000402")
    assert Decimal(dearer["cost_now"]) == 3 * (Decimal(3) * 1000 + Decimal(15) * 100) / 1_000_000
    shown = await bulkhead(world, "route", "--replay", str(recording), "--rules", str(file))
    assert "3 calls, 3 of them to another model" in shown
    await bulkhead(world, "models", "rules", "set", str(file))
    assert [rule["name"] for rule in await told(world, "models", "rules", "show")][-1] == "answers"
    assert "answers" in await bulkhead(world, "models", "rules", "show")
    recording.write_text('{"model": "x"}', "utf-8")
    assert "line 1" in await bulkhead(world, "route", "--replay", str(recording), status=1)

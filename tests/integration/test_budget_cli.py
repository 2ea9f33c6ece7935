"""`bulkhead budget` and `bulkhead usage`: what an operator sets and reads, and a file that re-adds to the ledger."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import stat
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner, Result

from rag.budgets.usage import UsageFilter, all_charges, read_usage
from rag.cli import cli
from rag.errors import BudgetExceeded, BulkheadError, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.llm.ledger import Payer
from rag.tenants.operator import Tier
from tests.support.ledger import LedgerScene, bill, cost, ledger_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
MONTH_AND_DAY = {"tenant month", "tenant day"}


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[LedgerScene]:
    """One database for the module; every test makes tenants of its own."""
    async with world(cluster) as own, ledger_scene(own) as scene:
        yield scene


async def invoked(scene: LedgerScene, *arguments: str) -> Result:
    def run() -> Result:
        return CliRunner().invoke(cli, arguments, env=scene.world.settings.to_env())

    with anyio.fail_after(BOUND_S):
        return await anyio.to_thread.run_sync(run)


async def bulkhead(scene: LedgerScene, *arguments: str) -> str:
    """Run a verb and return what it prints."""
    done = await invoked(scene, *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


async def told(scene: LedgerScene, *arguments: str) -> Any:
    """Run a verb and return what it says as JSON."""
    return json.loads(await bulkhead(scene, *arguments, "--json"))


async def refused(scene: LedgerScene, *arguments: str) -> BulkheadError:
    """Run a verb that fails, and return why."""
    done = await invoked(scene, *arguments)
    assert isinstance(done.exception, BulkheadError), (done.output, done.exception)
    return done.exception


def tenant_of(who: Principal) -> tuple[str, str]:
    return "--tenant", str(who.tenant_id)


async def spend(scene: LedgerScene, who: Principal, amount: str, *, model: str = "tiny", key: str = "key") -> None:
    """Make a call of a model that costs so much."""
    hold = await scene.ledger.hold(Payer(principal=who), bill(amount, model=model, key=key))
    await scene.ledger.start(hold)
    await scene.ledger.settle(hold, cost(amount))


async def busy(scene: LedgerScene, *, calls: int = 60) -> Principal:
    """Return a user of a tenant that has made calls of all kinds at once, for amounts that no float holds."""
    chance = random.Random(6)
    ada = await scene.caller(tier=Tier.ENTERPRISE, team="red")
    await bulkhead(scene, "budget", "set", "1000000", *tenant_of(ada), "--per", "month")
    callers = [ada, *(dataclasses.replace(ada, subject=f"user {n}", team=("blue", None)[n % 2]) for n in range(3))]

    async def call(number: int) -> None:
        upper = Decimal(chance.randrange(1, 10**15)) / Decimal(10**12)
        payer = Payer(principal=chance.choice(callers))
        hold = await scene.ledger.hold(
            payer, bill(upper, model=chance.choice(("tiny", "large")), key=f"=call {number}")
        )
        await scene.ledger.start(hold)
        match number % 5:
            case 0:
                await scene.ledger.release(hold)
            case 1:
                await scene.ledger.settle(hold, cost(upper, estimated=True))
            case 2:
                await scene.ledger.settle(hold, cost(upper * 3))  # the server was not as it was said to be
            case 3:
                await scene.ledger.settle(hold, cost(upper / 3))
            case _:
                pass  # still under way

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            for number in range(calls):
                tasks.start_soon(call, number)
    return ada


async def ledgers_total(scene: LedgerScene, who: Principal) -> Decimal:
    """Return what the ledger itself says that the tenant has spent."""
    everything = UsageFilter(
        tenant_id=who.tenant_id, since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)
    )
    async with scene.database.tenant(who) as session:
        (total,) = await read_usage(session, everything)
    return total.cost


async def test_budgets_are_set_shown_and_taken_away_and_are_in_force_at_the_next_call(scene: LedgerScene) -> None:
    ada = await scene.caller(tier=Tier.FREE, team="red")
    of_ada = tenant_of(ada)
    shown = await told(scene, "budget", "list", *of_ada)
    assert [(one["scope"], one["period"], Decimal(one["amount"]), one["from"]) for one in shown] == [
        ("tenant", "day", 1, "tier free"),
        ("tenant", "month", 10, "tier free"),
    ]
    for arguments in (
        ("2.5", "--per", "day"),
        ("none", "--per", "month", "--model", "tiny"),
        ("0.75", "--per", "day", "--each-user"),
        ("0.000001", "--per", "month", "--user", "bob"),
        ("4", "--per", "day", "--each-team"),
        ("5", "--per", "month", "--team", "red", "--model", "tiny"),
        ("3", "--per", "task"),
        ("2", "--per", "request"),
    ):
        assert await bulkhead(scene, "budget", "set", *arguments, *of_ada) == "set\n"
    shown = await told(scene, "budget", "list", *of_ada)
    assert {
        (one["scope"], one["scope_id"], one["model"], one["period"], one["amount"] and Decimal(one["amount"]))
        for one in shown
    } == {
        ("tenant", "", None, "month", Decimal(10)),
        ("tenant", "", None, "day", Decimal("2.5")),
        ("tenant", "", "tiny", "month", None),
        ("user", "", None, "day", Decimal("0.75")),
        ("user", "bob", None, "month", Decimal("0.000001")),
        ("team", "", None, "day", Decimal(4)),
        ("team", "red", "tiny", "month", Decimal(5)),
        ("task", "", None, "task", Decimal(3)),
        ("request", "", None, "request", Decimal(2)),
    }
    with pytest.raises(BudgetExceeded) as over:
        await scene.ledger.hold(Payer(principal=ada), bill("0.8"))
    assert (over.value.scope, over.value.window) == ("user", "day")
    await bulkhead(scene, "budget", "unset", "--per", "day", "--each-user", *of_ada)
    await scene.ledger.hold(Payer(principal=ada), bill("0.8"))
    table = await bulkhead(scene, "budget", "list", *of_ada)
    for words in ("user bob", "0.000001", "team red", "each task", "each request", "tier free", "none"):
        assert words in table
    assert "each user" not in table


async def test_how_budgets_stand_is_shown_to_the_last_digit(scene: LedgerScene) -> None:
    ada = await scene.caller(tier=Tier.PRO)
    await bulkhead(scene, "budget", "set", "1", *tenant_of(ada), "--per", "day", "--each-user")
    await spend(scene, ada, "0.333333333333")
    await scene.ledger.hold(Payer(principal=ada), bill("0.5"))
    status = await told(scene, "budget", "status", *tenant_of(ada))
    assert {f"{one['scope']} {one['period']}" for one in status} == {*MONTH_AND_DAY, "user day"}
    (mine,) = [one for one in status if one["scope"] == "user"]
    assert mine["scope_id"] == "ada"
    assert [mine[name] for name in ("amount", "used", "held", "left")] == [
        "1.000000000000",
        "0.333333333333",
        "0.500000000000",
        "0.166666666667",
    ]
    assert datetime.now(UTC) < datetime.fromisoformat(mine["resets_at"]) <= datetime.now(UTC) + timedelta(days=1)
    table = await bulkhead(scene, "budget", "status", *tenant_of(ada))
    for words in ("user ada", "0.333333333333", "0.166666666667", "the tenant"):
        assert words in table


async def test_a_tiers_budgets_are_shown_and_changed_for_all_who_have_booked_it(scene: LedgerScene) -> None:
    ada = await scene.caller(tier=Tier.PRO)
    shipped = {one["tier"]: one for one in await told(scene, "budget", "tiers")}
    assert list(shipped) == ["free", "pro", "enterprise"]
    assert shipped["enterprise"] == {"tier": "enterprise", "day": None, "month": None}
    try:
        await bulkhead(scene, "budget", "tier", "pro", "--day", "0.5", "--month", "none")
        with pytest.raises(BudgetExceeded):
            await scene.ledger.hold(Payer(principal=ada), bill("0.6"))
        assert await told(scene, "budget", "list", *tenant_of(ada)) == [
            {
                "scope": "tenant",
                "scope_id": "",
                "model": None,
                "period": "day",
                "amount": "0.500000000000",
                "from": "tier pro",
            }
        ]
        table = await bulkhead(scene, "budget", "tiers")
        assert ["pro", "0.5", "none"] in [line.split() for line in table.splitlines()]
    finally:
        await bulkhead(scene, "budget", "tier", "pro", "--day", "20", "--month", "200")
    assert {one["tier"]: one for one in await told(scene, "budget", "tiers")} == shipped


async def test_a_budget_for_a_model_that_nobody_has_is_set_and_said_to_be_one(scene: LedgerScene) -> None:
    ada = await scene.caller()
    done = await invoked(scene, "budget", "set", "1", *tenant_of(ada), "--per", "day", "--model", "tyny")
    assert (done.exit_code, done.stdout) == (0, "set\n")
    assert "'tyny'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "-1", "--per", "day"),
        ("set", "NaN", "--per", "day"),
        ("set", "Infinity", "--per", "day"),
        ("set", "much", "--per", "day"),
        ("set", "0.0000001", "--per", "day"),
        ("set", "1e13", "--per", "day"),
        ("set", "1", "--per", "task", "--user", "ada"),
        ("set", "1", "--per", "day", "--user", "ada", "--each-team"),
        ("set", "1", "--per", "day", "--user", ""),
        ("set", "1", "--per", "day", "--user", "x" * 257),
    ],
)
async def test_what_is_no_budget_is_refused_in_words_and_changes_nothing(
    scene: LedgerScene, arguments: tuple[str, ...]
) -> None:
    ada = await scene.caller()
    verb, *rest = arguments
    given = ("--", *rest[:1]) if rest[0] == "-1" else tuple(rest[:1])
    error = await refused(scene, "budget", verb, *rest[1:], *tenant_of(ada), *given)
    assert isinstance(error, InvalidInput)
    assert await told(scene, "budget", "list", *tenant_of(ada)) == []


async def test_a_budget_or_a_tenant_that_there_is_not_is_not_found(scene: LedgerScene) -> None:
    ada = await scene.caller()
    for arguments in (
        ("budget", "unset", *tenant_of(ada), "--per", "day"),
        ("budget", "set", "1", "--tenant", "nobody", "--per", "day"),
        ("budget", "list", "--tenant", "nobody"),
        ("budget", "alerts", "--tenant", "nobody"),
        ("usage", "--tenant", "nobody"),
    ):
        assert isinstance(await refused(scene, *arguments), NotFound)
    assert isinstance(await refused(scene, "budget", "tier", "pro"), InvalidInput)


async def test_alerts_are_listed_once_each_in_their_order(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await bulkhead(scene, "budget", "set", "1", *tenant_of(ada), "--per", "day")
    assert await told(scene, "budget", "alerts", *tenant_of(ada)) == []
    await spend(scene, ada, "0.8")
    await spend(scene, ada, "0.2")
    alerts = await told(scene, "budget", "alerts", *tenant_of(ada))
    assert [(one["mark"], Decimal(one["used"]), Decimal(one["amount"])) for one in alerts] == [
        (80, Decimal("0.8"), Decimal(1)),
        (100, Decimal(1), Decimal(1)),
    ]
    assert all(datetime.fromisoformat(one["at"]) <= datetime.now(UTC) + timedelta(minutes=1) for one in alerts)
    table = (await bulkhead(scene, "budget", "alerts", *tenant_of(ada))).splitlines()
    assert [line.split()[2] for line in table[1:]] == ["80", "100"]
    after = ("--since", (datetime.now(UTC) + timedelta(days=2)).date().isoformat())
    assert await told(scene, "budget", "alerts", *tenant_of(ada), *after) == []


async def test_usage_is_told_apart_by_all_that_is_asked_and_adds_up(scene: LedgerScene) -> None:
    ada = await busy(scene)
    total = await ledgers_total(scene, ada)
    plain = await told(scene, "usage", *tenant_of(ada))
    assert (Decimal(plain["total"]["cost"]), plain["rows"], plain["until"]) == (total, [], None)
    assert plain["total"]["calls"] == 36
    assert plain["total"]["estimated_calls"] == 12
    for by in ("day", "model", "user", "team", "model,user", "day,model,user,team"):
        found = await told(scene, "usage", *tenant_of(ada), "--by", by)
        assert sum((Decimal(row["cost"]) for row in found["rows"]), Decimal(0)) == total
        assert sum(row["calls"] for row in found["rows"]) == 36
        assert all(list(row)[: by.count(",") + 1] == by.split(",") for row in found["rows"])
    teams = {row["team"] for row in (await told(scene, "usage", *tenant_of(ada), "--by", "team"))["rows"]}
    assert teams == {"red", "blue", None}
    parts = [
        (await told(scene, "usage", *tenant_of(ada), "--model", model))["total"]["cost"] for model in ("tiny", "large")
    ]
    assert sum(map(Decimal, parts)) == total
    table = (await bulkhead(scene, "usage", *tenant_of(ada), "--by", "model")).splitlines()
    assert [line.split()[0] for line in table] == ["model", "large", "tiny", "total"]
    assert table[-1].split()[-1] == f"{total:f}".rstrip("0")


async def test_usage_of_a_time_is_that_of_the_calls_that_began_in_it(scene: LedgerScene) -> None:
    ada = await scene.caller()
    await spend(scene, ada, "1")
    await scene.a_day_passes(ada)
    await spend(scene, ada, "2")
    today = datetime.now(UTC).date()
    yesterday = today - timedelta(days=1)

    async def asked(*arguments: str) -> Decimal:
        return Decimal((await told(scene, "usage", *tenant_of(ada), *arguments))["total"]["cost"])

    assert await asked("--since", f"{yesterday}") == 3
    assert await asked("--since", f"{yesterday}", "--until", f"{today}") == 1
    assert await asked("--since", f"{today}") == 2
    assert await asked("--since", f"{today + timedelta(days=1)}") == 0
    days = await told(scene, "usage", *tenant_of(ada), "--since", f"{yesterday}", "--by", "day")
    assert [row["day"] for row in days["rows"]] == [f"{yesterday}", f"{today}"]
    error = await refused(scene, "usage", *tenant_of(ada), "--since", f"{today}", "--until", f"{yesterday}")
    assert isinstance(error, InvalidInput)


async def test_an_export_re_adds_to_the_ledgers_totals_and_accounts_to_the_last_digit(
    scene: LedgerScene, tmp_path: Path
) -> None:
    ada = await busy(scene)
    total = await ledgers_total(scene, ada)
    account = (await scene.accounts(ada))["tenant month"]
    as_csv, as_json = tmp_path / "calls.csv", tmp_path / "calls.json"
    said = await bulkhead(scene, "usage", *tenant_of(ada), "--export", str(as_csv))
    assert "36 calls" in said
    summary = await told(scene, "usage", *tenant_of(ada), "--export", str(as_json))

    with as_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    whole = json.loads(as_json.read_text(encoding="utf-8"))
    for calls in (rows, whole["calls"]):
        assert sum((Decimal(row["cost"]) for row in calls), Decimal(0)) == total == account.settled + account.overrun
        assert len({row["charge_id"] for row in calls}) == 36
    assert account.overrun > 0
    assert whole["total"] == summary["total"]
    assert whole["total"]["cost"] == f"{total:f}"
    lines = as_json.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == whole["calls"], "and it is read line by line"

    everything = UsageFilter(
        tenant_id=ada.tenant_id, since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)
    )
    async with scene.database.tenant(ada) as session:
        charges = [one async for one in all_charges(session, everything, page_size=7)]
    for charge, row, call in zip(charges, rows, whole["calls"], strict=True):
        assert row["charge_id"] == call["charge_id"] == str(charge.charge_id)
        assert (row["cost"], row["upper"]) == (call["cost"], call["upper"]) == (f"{charge.cost:f}", f"{charge.upper:f}")
        assert (row["estimated"], call["estimated"]) == ("true" if charge.estimated else "false", charge.estimated)
        assert (row["team"], call["team"]) == (charge.team or "", charge.team)
        assert (row["prompt_tokens"], call["prompt_tokens"]) == (
            "" if charge.prompt_tokens is None else str(charge.prompt_tokens),
            charge.prompt_tokens,
        )
        assert (row["call_key"], call["call_key"]) == (f"'{charge.call_key}", charge.call_key), "no formula"
    assert stat.S_IMODE(as_csv.stat().st_mode) == 0o600


async def test_an_export_of_nothing_is_a_file_that_says_so(scene: LedgerScene, tmp_path: Path) -> None:
    ada = await scene.caller()
    for name in ("none.csv", "none.json"):
        await bulkhead(scene, "usage", *tenant_of(ada), "--export", str(tmp_path / name))
    assert (tmp_path / "none.csv").read_text(encoding="utf-8").startswith("charge_id,held_at,")
    whole = json.loads((tmp_path / "none.json").read_text(encoding="utf-8"))
    assert (whole["calls"], whole["total"]["calls"], whole["total"]["cost"]) == ([], 0, "0")


async def test_an_export_takes_no_file_that_there_is_and_leaves_none_that_is_not_whole(
    scene: LedgerScene, tmp_path: Path
) -> None:
    ada = await scene.caller()
    kept = tmp_path / "kept.csv"
    kept.write_text("mine", encoding="utf-8")
    for arguments in (
        ("--export", str(kept)),
        ("--export", str(tmp_path / "calls.xlsx")),
        ("--export", str(tmp_path / "calls.csv"), "--by", "day"),
    ):
        assert isinstance(await refused(scene, "usage", *tenant_of(ada), *arguments), InvalidInput)
    missing = ("usage", "--tenant", "nobody", "--export", str(tmp_path / "calls.csv"))
    assert isinstance(await refused(scene, *missing), NotFound)
    assert kept.read_text(encoding="utf-8") == "mine"
    assert [path.name async for path in anyio.Path(tmp_path).iterdir()] == ["kept.csv"]


async def test_what_is_settled_while_an_export_is_written_is_in_all_of_it_or_in_none(scene: LedgerScene) -> None:
    """Its totals and its pages are asked for one after the other, and calls end in between."""
    ada = await scene.caller()
    await spend(scene, ada, "1")
    everything = UsageFilter(
        tenant_id=ada.tenant_id, since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)
    )
    async with scene.maintenance() as session:
        async with session.snapshot():
            (before,) = await read_usage(session, everything)
            await spend(scene, ada, "2")
            assert sum([one.cost async for one in all_charges(session, everything)]) == before.cost == 1
        (after,) = await read_usage(session, everything)
    assert after.cost == 3

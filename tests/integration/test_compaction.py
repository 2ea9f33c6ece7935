"""Compaction takes nothing from a search: the same hits before, during and after, and an index as good as a new one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import anyio
import pytest

from rag.corpus.compaction import LEASE_S, compact_due
from rag.db.pool import Database, Row
from rag.errors import FenceLost
from rag.identity.principal import Principal
from sql import load_queries
from tests.support.index import delete, index_faults, lexical_hits, put, stored, vocabulary
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
UPKEEP = load_queries("upkeep")
# no two of them are two letters apart, so that none is ever taken for a misspelling of another
TREES = ("alder", "juniper", "hawthorn", "sycamore", "willow", "mahogany", "eucalyptus", "tamarind", "oak", "baobab")
WHOLE: dict[str, Any] = {"lease_s": LEASE_S, "sweep_budget": 10_000, "sweep_share": 0.1, "sweep_after_s": 86_400.0}


def written(chance: random.Random, *, most: int = 4) -> list[str]:
    """Some chunks of words, the first ones frequent and the last ones rare."""
    weights = [2 ** (len(TREES) - n) for n in range(len(TREES))]
    return [" ".join(chance.choices(TREES, weights, k=chance.randint(1, 12))) for _ in range(chance.randint(1, most))]


async def compact_all(database: Database, **options: Any) -> int:
    """Compact until nothing is due; writes need not settle."""
    done = 0
    with anyio.fail_after(BOUND_S):
        while count := await compact_due(database, settle_s=0.0, **options):
            done += count
    return done


async def claimed(database: Database, *, settle_s: float = 0.0) -> Row:
    """Claim the one tenant that is due."""
    async with database.unsafe_unscoped(reason="test") as session:
        (row,) = await session.fetch(
            UPKEEP["claim_upkeep"], wanted=1, lease_s=LEASE_S, settle_s=settle_s, backlog=1_000_000
        )
    return row


async def all_hits(database: Database, principal: Principal) -> list[object]:
    """What the caller finds for each word and for some together."""
    queries = (*TREES, "alder oak", "juniper willow baobab", " ".join(TREES))
    return [await lexical_hits(database, principal, query) for query in queries]


def blocks(rows: list[Any]) -> Iterator[int]:
    """Sizes of the blocks of one list, in order."""
    return (row["postings"] for row in sorted(rows, key=lambda row: row["first_chunk"]))


async def block_sizes(world: World, tenant_id: UUID, term: str) -> list[int]:
    """Sizes of a term's base blocks in the order of their chunks."""
    rows = await stored(
        world,
        "select first_chunk, postings from rag.posting where tenant_id = $1 and term = $2 and not fresh",
        tenant_id,
        term,
    )
    return list(blocks(rows))


async def test_blocks_of_a_growing_corpus_are_full_but_for_the_last(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        for number in range(100):
            await put(database, principal, f"{number}", ["alder oak", "alder", f"alder only{number}"])
            if number % 30 == 29:
                assert await compact_all(database) == 1
        before = await all_hits(database, principal)
        assert await compact_all(database) == 1
        assert await all_hits(database, principal) == before
        assert await block_sizes(world, principal.tenant_id, "alder") == [128, 128, 44]
        assert await block_sizes(world, principal.tenant_id, "oak") == [100]
        assert await block_sizes(world, principal.tenant_id, "only7") == [1]
        assert await compact_all(database) == 0
    assert await stored(world, "select 1 from rag.posting where fresh") == []
    assert await stored(world, "select 1 from queue.write") == []
    assert await stored(world, "select 1 from queue.upkeep") == []
    assert await index_faults(world, principal.tenant_id) == []


async def test_sums_are_folded_and_stay(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    lawyer = dataclasses.replace(principal, groups=("legal",))
    sums = (
        "select audience, sum(chunks) as chunks, sum(terms) as terms, sum(writes) as writes, count(*) as rows "
        "from rag.corpus_change group by audience order by audience"
    )
    async with world.database(claims=True) as database:
        for number in range(6):
            await put(database, lawyer, f"{number}", ["alder"] * number, groups=["legal"] if number % 2 else [])
        await put(database, lawyer, "0", ["alder oak"], groups=[])
        await delete(database, lawyer, "1")
        before = await stored(world, sums)
        await compact_all(database)
        after = await stored(world, sums)
        assert [tuple(row)[:4] for row in after] == [tuple(row)[:4] for row in before]
        assert [row["rows"] for row in after] == [1, 1]
        assert await put(database, lawyer, "9", ["oak"]) == sum(row["writes"] for row in before) + 1


async def test_a_search_during_a_compaction_finds_what_it_found_before(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    chance = random.Random(1)
    async with world.database(claims=True) as database, world.database() as readers:
        for number in range(40):
            await put(database, principal, f"{number}", written(chance))
        await compact_all(database)
        for number in range(20, 60):
            await put(database, principal, f"{number}", written(chance))
        for number in range(10):
            await delete(database, principal, f"{number}")
        before = await all_hits(readers, principal)
        lease = await claimed(database)
        async with database.sealed(lease["seal"]) as session:
            step = await session.fetch_one(UPKEEP["compact"], lease=lease["lease"], budget=10_000, **WHOLE)
            assert step is not None
            assert step["more"], "the sweep takes another step"
            # the step has deleted and written, and has not committed
            assert await all_hits(readers, principal) == before
            with anyio.fail_after(BOUND_S):
                version = await put(readers, principal, "meanwhile", ["baobab"])
            with_new = await lexical_hits(readers, principal, "baobab")
            assert "meanwhile" in {hit[0] for hit in with_new}
        assert await lexical_hits(readers, principal, "baobab") == with_new
        await delete(readers, principal, "meanwhile")
        assert await all_hits(readers, principal) == before
        async with database.sealed(lease["seal"]) as session:
            while step["more"]:
                step = await session.fetch_one(UPKEEP["compact"], lease=lease["lease"], budget=10_000, **WHOLE)
                assert step is not None
            await session.fetch(UPKEEP["finish_upkeep"], lease=lease["lease"], next_at=None)
        assert await all_hits(readers, principal) == before
        assert await compact_all(database) == 1, "the put and the delete that came meanwhile"
        assert await all_hits(readers, principal) == before
        assert await put(readers, principal, "last", ["oak"]) == version + 2
    assert await index_faults(world, principal.tenant_id) == []


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_ends_in_the_index_of_its_living_documents(world: World, seed: int) -> None:
    """Puts, updates, deletes and compactions in any order, beside a tenant that only ever saw what is left."""
    chance = random.Random(seed)
    lived, fresh = await world.tenant("lived"), await world.tenant("fresh")
    groups = ("legal", "medical")
    writer = dataclasses.replace(world.principal(lived), groups=groups)
    copier = dataclasses.replace(world.principal(fresh), groups=groups)
    living: dict[str, tuple[str, list[str], list[str]]] = {}
    async with world.database(claims=True) as database:
        for _ in range(100):
            act = chance.random()
            if act < 0.7 or not living:
                source = f"{chance.randint(0, 40)}"
                chunks = written(chance, most=chance.choice((3, 3, 90)))
                readers = chance.choice(([], [], ["legal"], ["legal", "medical"]))
                document = (chance.choice(TREES), chunks, readers)
                if living.pop(source, None) != document:  # the order is that of the last write
                    await put(database, writer, source, chunks, title=document[0], groups=readers)
                living[source] = document
            elif act < 0.85:
                source = chance.choice(list(living))
                del living[source]
                await delete(database, writer, source)
            else:
                await compact_due(
                    database,
                    settle_s=0.0,
                    budget=chance.choice((1, 50, 20_000)),
                    sweep_budget=chance.choice((1, 7, 20_000)),
                    sweep_share=chance.choice((0.0, 0.1, 9.0)),
                )
                assert await index_faults(world, lived.tenant_id) == []
        for source, (title, chunks, readers) in living.items():
            await put(database, copier, source, chunks, title=title, groups=readers)
        for member in ((), ("legal",), groups):
            mine, theirs = (dataclasses.replace(one, groups=member) for one in (writer, copier))
            assert await all_hits(database, mine) == await all_hits(database, theirs)
        await stored(world, "update queue.upkeep set available_at = clock_timestamp()")  # or a sweep is due tomorrow
        await compact_all(database, sweep_share=0.0)
        for tenant in (lived, fresh):
            assert await index_faults(world, tenant.tenant_id) == []
        assert await vocabulary(world, lived.tenant_id) == await vocabulary(world, fresh.tenant_id)
        assert await stored(world, "select 1 from rag.posting where fresh") == []
        assert await stored(world, "select 1 from rag.tombstone") == []
        assert await stored(world, "select 1 from rag.sweep") == []
        for member in ((), ("legal",), groups):
            mine, theirs = (dataclasses.replace(one, groups=member) for one in (writer, copier))
            found = await all_hits(database, mine)
            assert found == await all_hits(database, theirs)
            assert any(found)
            # words that nobody wrote, near ones that somebody did
            for slip in ("aldr", "junipper", "sycamre", "wilow", "tamarinde"):
                assert await lexical_hits(database, mine, slip) == await lexical_hits(database, theirs, slip)


@dataclasses.dataclass(slots=True, kw_only=True)
class Traffic:
    """Writers, compactors and a reader of one tenant, until the writers are done."""

    database: Database
    principal: Principal
    still: list[tuple[Any, ...]]
    writing: int = 0

    async def write(self, name: int, puts: int) -> None:
        """Put documents of ever more chunks, and delete every third."""
        for number in range(puts):
            chunks = [f"willow own{name}x{number}"] * (number + 1)
            await put(self.database, self.principal, f"{name}-{number}", chunks)
            if number % 3 == 0:
                await delete(self.database, self.principal, f"{name}-{number}")
        self.writing -= 1

    async def compact(self) -> None:
        """Compact and sweep in small steps."""
        while self.writing:
            await compact_due(self.database, settle_s=0.0, budget=200, sweep_budget=50, sweep_share=0.0)

    async def read(self) -> None:
        """The corpus grows and with it idf; who is found, and in which order, does not change."""
        while self.writing:
            found = await lexical_hits(self.database, self.principal, "eucalyptus", limit=30)
            assert [hit[:3] for hit in found] == self.still


async def test_writers_and_compactors_side_by_side_lose_nothing(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    writers, puts = 6, 12
    async with world.database(claims=True, pool_size=12) as database:
        for number in range(30):
            await put(database, principal, f"still{number}", ["eucalyptus alder", "oak"])
        still = [hit[:3] for hit in await lexical_hits(database, principal, "eucalyptus", limit=30)]
        assert len(still) == 30
        traffic = Traffic(database=database, principal=principal, still=still, writing=writers)
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                for name in range(writers):
                    tasks.start_soon(traffic.write, name, puts)
                for act in (traffic.compact, traffic.compact, traffic.read):
                    tasks.start_soon(act)
        await stored(world, "update queue.upkeep set available_at = clock_timestamp()")
        await compact_all(database, sweep_share=0.0)
        for name in range(writers):
            for number in range(puts):
                found = await lexical_hits(database, principal, f"own{name}x{number}")
                assert len(found) == (0 if number % 3 == 0 else number + 1)
    assert await index_faults(world, principal.tenant_id) == []
    assert await stored(world, "select 1 from rag.tombstone") == []


async def test_what_is_deleted_leaves_the_index_after_a_day_however_little_it_is(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        for number in range(40):
            await put(database, principal, f"{number}", ["alder"])
        await put(database, principal, "secret", ["baobab"])
        await delete(database, principal, "secret")
        await compact_all(database)
        # what had not been taken in yet is gone already; a base block of another version is not
        await put(database, principal, "secret", ["tamarind"])
        await compact_all(database)
        await delete(database, principal, "secret")
        await compact_all(database)
        assert await lexical_hits(database, principal, "tamarind") == []
        assert await block_sizes(world, principal.tenant_id, "tamarind") == [1]
        assert len(await stored(world, "select 1 from rag.tombstone")) == 2
        (row,) = await stored(world, "select available_at - clock_timestamp() as wait, leased_until from queue.upkeep")
        assert 86_000 < row["wait"].total_seconds() <= 86_400
        assert row["leased_until"] is None
        await put(database, principal, "another", ["alder"])
        assert await compact_all(database) == 1, "a tenant that waits for its sweep is looked after meanwhile"
        await stored(world, "update queue.upkeep set available_at = available_at - interval '1 day'")
        await stored(world, "update rag.tombstone set buried_at = buried_at - interval '1 day'")
        assert await compact_all(database) == 1
    assert await block_sizes(world, principal.tenant_id, "tamarind") == []
    assert await stored(world, "select 1 from rag.term where term = 'tamarind'") == []
    assert await stored(world, "select 1 from rag.tombstone") == []
    assert await stored(world, "select 1 from queue.upkeep") == []


async def test_a_block_that_has_lost_more_than_half_is_joined_with_its_neighbour(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        for number in range(16):
            await put(database, principal, f"{number}", ["alder"] * 32)
        await compact_all(database)
        assert await block_sizes(world, principal.tenant_id, "alder") == [128, 128, 128, 128]
        for number in (4, 5, 6, 12, 13, 14, 15):
            await delete(database, principal, f"{number}")
        await compact_all(database)
        assert await block_sizes(world, principal.tenant_id, "alder") == [128, 80, 80]
        assert len(await lexical_hits(database, principal, "alder", limit=500)) > 0
    assert await index_faults(world, principal.tenant_id) == []


async def test_one_tenant_has_one_compactor_and_a_lost_lease_writes_nothing(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        await put(database, principal, "1", ["alder"])
        first = await claimed(database)
        await put(database, principal, "2", ["alder"])
        assert await compact_due(database, settle_s=0.0) == 0, "its new writes wait for the one who has the lease"
        await stored(world, "update queue.upkeep set leased_until = clock_timestamp() - interval '1 s'")
        second = await claimed(database)
        assert second["attempts"] == 2
        with pytest.raises(FenceLost):
            async with database.sealed(first["seal"]) as session:
                await session.fetch(UPKEEP["compact"], lease=first["lease"], budget=10_000, **WHOLE)
        assert len(await stored(world, "select 1 from rag.posting where fresh")) == 2 * 2  # alder, and the title's word
        async with database.sealed(second["seal"]) as session:
            await session.fetch(UPKEEP["compact"], lease=second["lease"], budget=10_000, **WHOLE)
        assert await stored(world, "select 1 from rag.posting where fresh") == []


async def test_a_tenant_is_due_when_its_writes_have_settled_or_are_many(world: World) -> None:
    one, many = await world.tenant("one"), await world.tenant("many")
    async with world.database(claims=True) as database:
        await put(database, world.principal(one), "1", ["alder"])
        assert await compact_due(database, settle_s=3600.0) == 0
        for number in range(5):
            await put(database, world.principal(many), f"{number}", ["alder"])
        assert await compact_due(database, settle_s=3600.0, backlog=6) == 0
        assert await compact_due(database, settle_s=3600.0, backlog=5, claim=9) == 1
        (fresh,) = await stored(world, "select distinct tenant_id from rag.posting where fresh")
        assert fresh["tenant_id"] == one.tenant_id
        await stored(world, "update queue.write set written_at = written_at - interval '1 hour'")
        assert await compact_due(database, settle_s=3600.0) == 1
    assert await stored(world, "select 1 from rag.posting where fresh") == []


async def test_a_server_may_neither_claim_upkeep_nor_rewrite_an_index(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database() as database:
        await put(database, principal, "1", ["alder"])
        for query, parameters in (
            ("claim_upkeep", {"wanted": 1, "lease_s": 1.0, "settle_s": 0.0, "backlog": 1}),
            ("finish_upkeep", {"lease": None, "next_at": None}),
            ("compact", {"lease": None, "budget": 1, **WHOLE}),
        ):
            with pytest.raises(Exception, match="refused"):
                async with database.tenant(principal) as session:
                    await session.fetch(UPKEEP[query], **parameters)

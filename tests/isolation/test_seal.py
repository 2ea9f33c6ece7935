"""The sealed tenant context, attacked from the strongest position short of the seal key: raw SQL as the app role."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.errors import Revoked, SealRefused
from rag.identity.scopes import Audience, Scope
from rag.identity.seal import Sealer, load_seal_keys
from rag.tenants.operator import Tenant
from sql import Query
from tests.support.documents import put_raw_document
from tests.support.world import World

pytestmark = pytest.mark.anyio

TITLES = Query(name="titles", description="", text="select title from rag.document order by title", parameters=())


@asynccontextmanager
async def as_app(world: World) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(world.settings.database_url)
    try:
        yield connection
    finally:
        await connection.close()


def reason(error: asyncpg.PostgresError) -> object:
    return getattr(error, "detail", None)


def payload(tenant: Tenant, **changes: object) -> str:
    fields: dict[str, object] = {
        "tenant": str(tenant.tenant_id),
        "sub": "mallory",
        "groups": [],
        "jti": ["x"],
        "iat": time.time(),
        "exp": time.time() + 60,
    }
    return json.dumps({**fields, **changes})


def sealed_with(key: bytes, kid: str, text: str) -> str:
    return f"{kid}.{hmac.digest(key, text.encode(), 'sha256').hex()}.{text}"


def real_key(world: World) -> tuple[str, bytes]:
    assert world.settings.seal_keys_file is not None
    keys = load_seal_keys(world.settings.seal_keys_file)
    return keys.active, keys.keys[keys.active]


async def test_a_sealed_session_sees_its_own_tenant_and_no_other(world: World) -> None:
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database() as database:
        for tenant in (acme, globex):
            async with database.tenant(world.principal(tenant)) as session:
                await put_raw_document(session, title=f"Only {tenant.name}", text="A secret of one tenant.")
        for tenant in (acme, globex):
            async with database.tenant(world.principal(tenant)) as session:
                assert [row["title"] for row in await session.fetch(TITLES)] == [f"Only {tenant.name}"]


async def test_without_a_context_every_tenant_table_is_an_error_and_not_an_empty_answer(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme)) as session:
        await put_raw_document(session, title="t", text="Some text.")
    async with as_app(world) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
            await connection.fetch("select * from rag.document")
    assert reason(refused.value) == "missing"


@pytest.mark.parametrize("context", ["", ".", "..", "a.b.c", "x" * 100_000, "{}", "'; select 1; --"])
async def test_a_malformed_context_is_refused(world: World, context: str) -> None:
    async with as_app(world) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select rag.open_context_v1($1)", context)


async def test_a_seal_under_a_guessed_key_is_refused(world: World) -> None:
    acme = await world.tenant("acme")
    kid, _ = real_key(world)
    async with as_app(world) as connection:
        for name in (kid, "other"):
            forged = sealed_with(secrets.token_bytes(32), name, payload(acme))
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
                await connection.fetch("select rag.open_context_v1($1)", forged)
            assert reason(refused.value) == "forged"


async def test_a_real_seal_with_another_tenant_written_into_it_is_refused(world: World) -> None:
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database() as database:
        seal = database.seal(world.principal(acme))
    async with as_app(world) as connection:
        assert await connection.fetchval("select rag.open_context_v1($1)", seal) == acme.tenant_id
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(
                "select rag.open_context_v1($1)", seal.replace(str(acme.tenant_id), str(globex.tenant_id))
            )


@given(position=st.integers(0, 10_000), replacement=st.sampled_from("0123456789abcdef.{}\"'"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_changed_character_breaks_the_seal(world: World, position: int, replacement: str) -> None:
    tenant = await world.tenant(f"t-{secrets.token_hex(8)}")
    async with world.database(pool_size=1) as database:
        seal = database.seal(world.principal(tenant))
    at = position % len(seal)
    if seal[at] == replacement:
        return
    async with as_app(world) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select rag.open_context_v1($1)", seal[:at] + replacement + seal[at + 1 :])


async def test_an_expired_seal_is_refused(world: World) -> None:
    acme = await world.tenant("acme")
    assert world.settings.seal_keys_file is not None
    past = Sealer(keys=load_seal_keys(world.settings.seal_keys_file), clock=lambda: time.time() - 3600)
    async with as_app(world) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
            await connection.fetch("select rag.open_context_v1($1)", past.seal(world.principal(acme)))
    assert reason(refused.value) == "expired"


@pytest.mark.parametrize("missing", ["exp", "iat", "tenant"])
async def test_a_seal_that_leaves_something_out_is_refused(world: World, missing: str) -> None:
    acme = await world.tenant("acme")
    kid, key = real_key(world)
    text = json.dumps({**json.loads(payload(acme)), missing: None})
    async with as_app(world) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select rag.open_context_v1($1)", sealed_with(key, kid, text))


async def test_a_seal_for_a_tenant_that_does_not_exist_is_refused(world: World) -> None:
    async with world.database() as database:
        with pytest.raises(SealRefused):
            async with database.tenant(world.principal(uuid4())):
                pytest.fail("a session was opened")


async def test_a_context_ends_with_its_transaction(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database:
        seal = database.seal(world.principal(acme))
    async with as_app(world) as connection:
        await connection.fetchval("select rag.open_context_v1($1)", seal)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("select rag.current_tenant()")


async def test_writing_another_tenants_id_is_refused(world: World) -> None:
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database() as database:
        seal = database.seal(world.principal(acme))
    async with as_app(world) as connection, connection.transaction():
        await connection.fetchval("select rag.open_context_v1($1)", seal)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute(
                "insert into rag.tombstone (tenant_id, ordinal, audience) values ($1, 1, 0)", globex.tenant_id
            )


async def test_the_app_role_reads_no_key_mints_no_seal_and_empties_no_table(world: World) -> None:
    attempts = [
        "select * from seal.key",
        "select seal.mint_v1(gen_random_uuid(), 'x', 60)",
        "select seal.verified_context()",
        "select * from seal.revocation",
        "select * from queue.run",
        "select * from queue.embedding",
        "truncate rag.document cascade",
        "set role bulkhead_owner",
        "set role bulkhead_queue",
        "create table rag.mine ()",
        "create temp table mine ()",
        "alter table rag.document disable row level security",
        "drop policy tenant_isolation on rag.document",
        "select * from rag.chunk_00",
        "insert into rag.tenant (tenant_id, name) values (gen_random_uuid(), 'mine')",
    ]
    async with as_app(world) as connection:
        for attempt in attempts:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(attempt)


async def test_a_revoked_token_ends_with_the_next_statement_and_others_go_on(world: World) -> None:
    acme = await world.tenant("acme")
    first, second = world.principal(acme), world.principal(acme)
    async with world.database() as database, world.operator() as operator:
        async with database.tenant(first):
            pass
        await operator.revoke_token(acme.tenant_id, first.token_ids[0])
        with pytest.raises(Revoked):
            async with database.tenant(first):
                pytest.fail("a revoked token opened a session")
        async with database.tenant(second):
            pass


async def test_revocation_reaches_into_an_open_transaction(world: World) -> None:
    acme = await world.tenant("acme")
    principal = world.principal(acme)
    async with world.database() as database, world.operator() as operator:

        async def write_be_revoked_and_read() -> None:
            async with database.tenant(principal) as session:
                await put_raw_document(session, title="t", text="Some text.")
                await operator.revoke_user(acme.tenant_id, principal.subject)
                await session.fetch(TITLES)

        with pytest.raises(Revoked):
            await write_be_revoked_and_read()
        async with database.tenant(world.principal(acme, user="somebody-else")) as session:
            assert await session.fetch(TITLES) == [], "what the revoked transaction had written was rolled back"


async def test_revoking_a_user_or_a_tenant_ends_older_tokens_and_not_newer_ones(world: World) -> None:
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    old, other_user, other_tenant = (
        world.principal(acme, user="ada"),
        world.principal(acme, user="bob"),
        world.principal(globex, user="ada"),
    )
    async with world.database() as database, world.operator() as operator:
        await operator.revoke_user(acme.tenant_id, "ada")
        with pytest.raises(Revoked):
            async with database.tenant(old):
                pytest.fail("a revoked user opened a session")
        for principal in (other_user, other_tenant, world.principal(acme, user="ada")):
            async with database.tenant(principal):
                pass
        await operator.revoke_tenant(acme.tenant_id)
        with pytest.raises(Revoked):
            async with database.tenant(other_user):
                pytest.fail("a revoked tenant opened a session")
        async with database.tenant(other_tenant):
            pass


async def test_a_token_that_was_exchanged_ends_with_the_one_it_came_from(world: World) -> None:
    acme = await world.tenant("acme")
    original = world.principal(acme)
    token = world.issuer.exchange(original, actor="a2a-server", audience=Audience.MCP, scopes=[Scope.CORPUS_READ])
    exchanged = world.verifier(Audience.MCP).verify(token)
    assert exchanged.actor == "a2a-server"
    assert exchanged.scopes == {Scope.CORPUS_READ}
    async with world.database() as database, world.operator() as operator:
        async with database.tenant(exchanged):
            pass
        await operator.revoke_token(acme.tenant_id, original.token_ids[0])
        with pytest.raises(Revoked):
            async with database.tenant(exchanged):
                pytest.fail("an exchanged token outlived its origin")


async def test_python_and_sql_agree_on_the_mac(world: World) -> None:
    """The pads in the database verify what hmac makes, for a payload with non-ASCII text."""
    acme = await world.tenant("acme")
    kid, key = real_key(world)
    seal = sealed_with(key, kid, payload(acme, sub="Zoë § 78j"))
    async with as_app(world) as connection, connection.transaction():
        assert await connection.fetchval("select rag.open_context_v1($1)", seal) == acme.tenant_id
        assert await connection.fetchval("select rag.current_subject()") == "Zoë § 78j"

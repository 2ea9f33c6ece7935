-- Upkeep of the lexical index: fresh blocks become base blocks, dead postings go, sums are folded, the vocabulary follows.
--
-- Writers only insert, and what they insert is never changed, so compaction takes nothing from under them: it deletes exactly
-- the blocks that it has read. One compactor works for a tenant at a time, in steps of a bounded size, each a transaction
-- that ends with the same postings as it began with, less those of dead versions, which no search counts: a search finds
-- the same before, during and after it.

-- 1. Who needs upkeep. A write appends a row and waits for nobody; one row per tenant would make its writers queue.
create table queue.write (
    tenant_id uuid not null,
    written_at timestamptz not null default clock_timestamp(),
    entry bigint generated always as identity,
    primary key (tenant_id, written_at, entry)
);

-- Tenants whose upkeep is under way, or is to come. Only claims and holders of a lease touch it.
create table queue.upkeep (
    tenant_id uuid primary key,
    available_at timestamptz,           -- null: nothing to do until the next write
    lease uuid,
    leased_until timestamptz,
    attempts integer not null default 0
);

-- Of every write, whichever way it comes: all of them count themselves into rag.corpus_change.
create function queue.note_write_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    insert into queue.write (tenant_id) values (rag.current_tenant());
    return null;
end
$$;
-- Leases tenants that have been written to: those whose first write has waited for settle_s, so that a run of writes is
-- taken together, or that have `backlog` of them; and those whose time has come. A lease that is neither held nor finished
-- runs out, and the tenant is offered again, more and more rarely.
create function queue.claim_upkeep_v1(wanted integer, lease_s double precision, settle_s double precision, backlog integer)
returns table (lease uuid, attempts integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with recursive written as (
        -- one look per tenant, however many rows wait
        (select w.tenant_id, w.written_at from queue.write w order by w.tenant_id, w.written_at limit 1)
        union all
        select n.tenant_id, n.written_at
        from written p
        cross join lateral (
            select w.tenant_id, w.written_at
            from queue.write w
            where w.tenant_id > p.tenant_id
            order by w.tenant_id, w.written_at
            limit 1
        ) n
    ),
    due as (
        select w.tenant_id, w.written_at as since
        from written w
        where w.written_at <= clock_timestamp() - make_interval(secs => settle_s)
            or exists (select from queue.write b where b.tenant_id = w.tenant_id offset backlog - 1)
        union all
        select u.tenant_id, u.available_at
        from queue.upkeep u
        where u.available_at <= clock_timestamp()
    ),
    free as materialized (
        select d.tenant_id
        from due d
        where not exists (
            select from queue.upkeep u where u.tenant_id = d.tenant_id and u.leased_until > clock_timestamp()
        )
        group by d.tenant_id
        order by min(d.since)
        limit wanted
    ),
    claimed as (
        insert into queue.upkeep as k (tenant_id, available_at, lease, leased_until, attempts)
        select f.tenant_id, clock_timestamp(), gen_random_uuid(), clock_timestamp() + make_interval(secs => lease_s), 1
        from free f
        order by f.tenant_id  -- two claims that wait for each other's rows would deadlock
        on conflict (tenant_id) do update
        set available_at = excluded.available_at,
            lease = excluded.lease,
            leased_until = clock_timestamp() + make_interval(secs => lease_s * (1 << least(k.attempts, 6))),
            attempts = k.attempts + 1
        where k.leased_until is null or k.leased_until <= clock_timestamp()
        returning k.tenant_id, k.lease, k.attempts
    ),
    -- what this statement sees of the writes, the compaction will see all the more; later ones make the tenant due again
    taken as (
        delete from queue.write w using claimed c where w.tenant_id = c.tenant_id
    )
    select c.lease, c.attempts, seal.mint_v2(c.tenant_id, 'system:compactor', 600) from claimed c;
$$;

-- Raises BH001 unless the caller still has the lease; extends it, and keeps every other compactor of the tenant away until
-- the caller's transaction ends.
create function queue.hold_upkeep_v1(held uuid, lease_s double precision) returns void
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    update queue.upkeep u
    set leased_until = clock_timestamp() + make_interval(secs => lease_s)
    where u.tenant_id = rag.current_tenant() and u.lease = held;
    if not found then
        raise exception 'lease lost' using errcode = 'BH001';
    end if;
end
$$;

-- Ends a lease. The tenant comes again at next_at, or with its next write.
create function queue.finish_upkeep_v1(held uuid, next_at timestamptz) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.upkeep u where u.tenant_id = rag.current_tenant() and u.lease = held and next_at is null;
    update queue.upkeep u
    set available_at = next_at, lease = null, leased_until = null, attempts = 0
    where u.tenant_id = rag.current_tenant() and u.lease = held;
$$;

-- What was written before there was upkeep.
insert into queue.write (tenant_id) select t.tenant_id from rag.tenant t;

create trigger corpus_change_noted
after insert on rag.corpus_change
for each statement execute function queue.note_write_v1();

grant execute on function
    queue.claim_upkeep_v1(integer, double precision, double precision, integer),
    queue.hold_upkeep_v1(uuid, double precision),
    queue.finish_upkeep_v1(uuid, timestamptz)
to bulkhead_worker;
alter table queue.write owner to bulkhead_queue;
alter table queue.upkeep owner to bulkhead_queue;
alter function queue.note_write_v1() owner to bulkhead_queue;
alter function queue.claim_upkeep_v1(integer, double precision, double precision, integer) owner to bulkhead_queue;
alter function queue.hold_upkeep_v1(uuid, double precision) owner to bulkhead_queue;
alter function queue.finish_upkeep_v1(uuid, timestamptz) owner to bulkhead_queue;

-- 2. Dead postings. A version's terms are not known any more when it is dead, so they are found by a sweep over all blocks
-- of the tenant. It is worth it when a tenth of the postings are dead; and nothing that was deleted stays for longer than a day.
alter table rag.tombstone
    add column chunks integer not null default 0,
    add column buried_at timestamptz not null default clock_timestamp();

create or replace function rag.drop_version_v1(document uuid, version_ordinal bigint) returns void
language sql volatile security invoker
set search_path = ''
as $$
    insert into rag.tombstone (tenant_id, ordinal, audience, chunks)
    select d.tenant_id, version_ordinal, d.audience, d.chunks
    from rag.document d
    where d.tenant_id = rag.current_tenant() and d.document_id = document;

    insert into rag.corpus_change (tenant_id, audience, chunks, terms, writes)
    select d.tenant_id, d.audience, -d.chunks, -d.terms, 1
    from rag.document d
    where d.tenant_id = rag.current_tenant() and d.document_id = document;

    delete from rag.chunk c
    where c.tenant_id = rag.current_tenant()
        and c.chunk_id >= version_ordinal << 20
        and c.chunk_id < (version_ordinal + 1) << 20;
$$;

-- A sweep under way: which versions it removes, and the last block that it has looked at.
create table rag.sweep (
    tenant_id uuid primary key references rag.tenant,
    ordinals bigint[] not null,         -- ascending
    term text not null,
    audience bigint not null,
    first_chunk bigint not null
);
call rag.isolate('rag.sweep');
grant select, insert, update, delete on rag.sweep to bulkhead_worker;
grant update on rag.corpus_change to bulkhead_worker;

-- 3. Rewriting blocks.

-- A word and its forms with one letter left out: as rag.search_v2 makes them of a word that it does not know.
create function rag.variants_v1(word text) returns setof text
language sql immutable parallel safe security invoker
set search_path = ''
as $$
    select left(word, i - 1) || substr(word, i + 1) from generate_series(1, length(word) + 1) i group by 1;
$$;

-- Follows changes of df: terms come and go, and so do the spellings of those that are words and more than a slip.
-- NOTE: here and below, rows are looked up one by one (lateral, offset 0), joined by hash and deleted by ctid, whatever the
-- planner's statistics say: they lag behind in tables that change as much as these, and a plan for one row took 20 times as
-- long. A ctid holds within a statement, and only the compactor deletes these rows.
create function rag.follow_vocabulary_v1(tenant uuid, changed_terms text[], changed_audiences bigint[], changes bigint[])
returns void
language sql volatile security invoker
set search_path = ''
set enable_nestloop = off
as $$
    with change as materialized (
        select c.term, c.audience, coalesce(t.df, 0) as was, coalesce(t.df, 0) + c.change as now, t.ctid as place
        from unnest(changed_terms, changed_audiences, changes) as c (term, audience, change)
        left join lateral (
            select t.df, t.ctid
            from rag.term t
            where t.tenant_id = tenant and t.audience = c.audience and t.term = c.term
            offset 0
        ) t on true
        where c.change <> 0
    ),
    kept as (
        insert into rag.term (tenant_id, audience, term, df)
        select tenant, c.audience, c.term, c.now
        from change c
        where c.now > 0
        on conflict (tenant_id, audience, term) do update set df = excluded.df
    ),
    gone as (
        delete from rag.term t
        where t.tenant_id = tenant and t.ctid = any (array(select c.place from change c where c.now <= 0))
    ),
    unspelt as (
        delete from rag.spelling s
        where s.tenant_id = tenant
            and s.ctid = any (
                array(
                    select s.place
                    from change c
                    cross join lateral rag.variants_v1(c.term) as v (variant)
                    cross join lateral (
                        select s.ctid as place
                        from rag.spelling s
                        where s.tenant_id = tenant and s.audience = c.audience and s.variant = v.variant and s.term = c.term
                        offset 0
                    ) s
                    where c.was >= 2 and c.now < 2 and c.term ~ '^[[:alpha:]]{4,24}$'
                )
            )
    )
    insert into rag.spelling (tenant_id, audience, variant, term)
    select tenant, c.audience, v.variant, c.term
    from change c
    cross join lateral rag.variants_v1(c.term) as v (variant)
    where c.was < 2 and c.now >= 2 and c.term ~ '^[[:alpha:]]{4,24}$'
    on conflict do nothing;
$$;

-- Takes the given blocks into the base blocks of their lists, without dead postings. Fresh blocks end; a base block is
-- rewritten when postings fall into it, or when it is given itself. One that keeps less than half of a block takes its
-- neighbour along. So of one term and audience base blocks are in the order of their chunks, do not overlap, and all
-- but the last are at least half full; those of a corpus that only grows are full.
create function rag.rewrite_blocks_v1(
    tenant uuid,
    terms text[],
    audiences bigint[],
    firsts bigint[],
    lasts bigint[],
    freshness boolean[],
    places tid[]
)
returns void
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
    dead bigint[] := array(select t.ordinal from rag.tombstone t where t.tenant_id = tenant);
    changed_terms text[];
    changed_audiences bigint[];
    changes bigint[];
begin
    with
    given as materialized (
        select g.*
        from unnest(terms, audiences, firsts, lasts, freshness, places)
            as g (term, audience, first_chunk, last_chunk, fresh, place)
    ),
    span as materialized (
        select g.term, g.audience, min(g.first_chunk) as low, max(g.last_chunk) as high
        from given g
        group by g.term, g.audience
    ),
    -- the base blocks from the one that the lowest posting falls into to some beyond the highest, and their order
    base as materialized (
        select s.term, s.audience, b.*, row_number() over list as number, lead(b.first_chunk) over list as next_chunk
        from span s
        cross join lateral (
            (
                select p.first_chunk, p.ctid as place
                from rag.posting p
                where p.tenant_id = tenant and p.term = s.term and p.audience = s.audience
                    and p.first_chunk <= s.low and not p.fresh
                order by p.first_chunk desc
                limit 1
            )
            union all
            (
                select p.first_chunk, p.ctid
                from rag.posting p
                where p.tenant_id = tenant and p.term = s.term and p.audience = s.audience
                    and p.first_chunk > s.low and p.first_chunk <= s.high and not p.fresh
                offset 0
            )
            union all
            (
                select p.first_chunk, p.ctid
                from rag.posting p
                where p.tenant_id = tenant and p.term = s.term and p.audience = s.audience
                    and p.first_chunk > s.high and not p.fresh
                order by p.first_chunk
                limit 3  -- one to receive what lies before it, one that it may take along, one to see that there are more
            )
        ) b
        window list as (partition by s.term, s.audience order by b.first_chunk)
    ),
    bounds as materialized (
        select b.term, b.audience, array_agg(b.first_chunk order by b.first_chunk) as firsts
        from base b
        group by b.term, b.audience
    ),
    ended as (
        delete from rag.posting p
        where p.tenant_id = tenant and p.fresh and p.ctid = any (array(select g.place from given g where g.fresh))
        returning p.*
    ),
    -- each posting that comes, and the block that it falls into: the last that begins before it, else the first
    arrival as materialized (
        select e.term, e.audience, u.*, o.firsts[greatest(width_bucket(u.chunk_id, o.firsts), 1)] as owner
        from ended e
        left join bounds o on o.term = e.term and o.audience = e.audience
        cross join lateral unnest(e.chunk_ids, e.frequencies, e.title_frequencies, e.lengths)
            as u (chunk_id, frequency, title_frequency, length)
        where u.chunk_id >> 20 not in (select unnest(dead))
    ),
    touched as materialized (
        select b.term, b.audience, b.first_chunk, b.next_chunk, b.place, t.arrivals
        from (
            select t.term, t.audience, t.first_chunk, sum(t.arrivals) as arrivals
            from (
                select a.term, a.audience, a.owner as first_chunk, 1 as arrivals from arrival a where a.owner is not null
                union all
                select g.term, g.audience, g.first_chunk, 0 from given g where not g.fresh
            ) t
            group by t.term, t.audience, t.first_chunk
        ) t
        join base b on b.term = t.term and b.audience = t.audience and b.first_chunk = t.first_chunk
    ),
    poor as materialized (
        select t.term, t.audience, t.next_chunk
        from touched t
        cross join lateral (
            select count(*) as postings
            from (
                select unnest(p.chunk_ids) as chunk_id
                from rag.posting p
                where p.tenant_id = tenant and p.term = t.term and p.audience = t.audience and p.first_chunk = t.first_chunk
            ) u
            where u.chunk_id >> 20 not in (select unnest(dead))
            offset 0
        ) p
        where t.next_chunk is not null and t.arrivals + p.postings < 64
    ),
    -- neighbours are rewritten together: a run
    run as materialized (
        select b.term, b.audience, b.first_chunk, b.place, b.next_chunk is null as at_end,
            b.number - row_number() over (partition by b.term, b.audience order by b.number) as run
        from (
            select t.term, t.audience, t.first_chunk from touched t
            union
            select n.term, n.audience, n.next_chunk from poor n
        ) t
        join base b on b.term = t.term and b.audience = t.audience and b.first_chunk = t.first_chunk
    ),
    replaced as (
        delete from rag.posting p
        where p.tenant_id = tenant and not p.fresh and p.ctid = any (array(select r.place from run r))
        returning p.*
    ),
    kept as (
        select r.term, r.audience, r.run, r.at_end, u.chunk_id, u.frequency, u.title_frequency, u.length
        from replaced p
        join run r on r.term = p.term and r.audience = p.audience and r.first_chunk = p.first_chunk
        cross join lateral unnest(p.chunk_ids, p.frequencies, p.title_frequencies, p.lengths)
            as u (chunk_id, frequency, title_frequency, length)
        where u.chunk_id >> 20 not in (select unnest(dead))
        union all
        select a.term, a.audience, coalesce(r.run, 0), coalesce(r.at_end, true), a.chunk_id, a.frequency, a.title_frequency,
            a.length
        from arrival a
        left join run r on r.term = a.term and r.audience = a.audience and r.first_chunk = a.owner
    ),
    numbered as (
        select k.*,
            row_number() over (partition by k.term, k.audience, k.run order by k.chunk_id) - 1 as number,
            count(*) over (partition by k.term, k.audience, k.run) as total,
            bool_or(k.at_end) over (partition by k.term, k.audience, k.run) as ends
        from kept k
    ),
    added as (
        insert into rag.posting as p (
            tenant_id, term, audience, first_chunk, last_chunk, postings, fresh, chunk_ids, frequencies, title_frequencies, lengths
        )
        select
            tenant, n.term, n.audience, min(n.chunk_id), max(n.chunk_id), count(*), false,
            array_agg(n.chunk_id order by n.chunk_id),
            array_agg(n.frequency order by n.chunk_id),
            array_agg(n.title_frequency order by n.chunk_id),
            array_agg(n.length order by n.chunk_id)
        from numbered n
        -- at the end of a list full blocks and a rest, elsewhere blocks of one size
        group by n.term, n.audience, n.run,
            case when n.ends then n.number / 128 else n.number * ((n.total + 127) / 128) / n.total end
        returning p.term, p.audience, p.postings
    )
    select array_agg(c.term), array_agg(c.audience), array_agg(c.change)
    into changed_terms, changed_audiences, changes
    from (
        select s.term, s.audience, sum(s.change) as change
        from (
            select a.term, a.audience, a.postings as change from added a
            union all
            select r.term, r.audience, -r.postings from replaced r
        ) s
        group by s.term, s.audience
    ) c;
    perform rag.follow_vocabulary_v1(tenant, changed_terms, changed_audiences, changes);
end
$$;

-- 4. One step. Returns whether there is more to do, and when a sweep falls due by itself. Raises BH001 as
-- queue.hold_upkeep_v1.
create function rag.compact_v1(
    held uuid,
    lease_s double precision,
    budget integer,                     -- postings to take in, about
    sweep_budget integer,               -- postings to look through for dead ones
    sweep_share double precision,
    sweep_after_s double precision
)
returns table (more boolean, sweep_at timestamptz)
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.current_tenant();
    terms text[];
    audiences bigint[];
    firsts bigint[];
    lasts bigint[];
    freshness boolean[];
    places tid[];
    taken bigint;
    sweep rag.sweep;
    dead bigint[];
    dead_chunks bigint;
    oldest timestamptz;
    looked bigint;
    last_term text;
    last_audience bigint;
    last_first bigint;
begin
    perform queue.hold_upkeep_v1(held, lease_s);
    more := false;

    -- fresh blocks, list by list
    select array_agg(f.term), array_agg(f.audience), array_agg(f.first_chunk), array_agg(f.last_chunk),
        array_agg(true), array_agg(f.place), sum(f.postings)
    into terms, audiences, firsts, lasts, freshness, places, taken
    from (
        select p.*, sum(p.postings) over (order by p.audience, p.term rows unbounded preceding) as reading
        from (
            select p.term, p.audience, p.first_chunk, p.last_chunk, p.postings, p.ctid as place
            from rag.posting p
            where p.tenant_id = tenant and p.fresh
            order by p.audience, p.term
            limit budget
        ) p
    ) f
    where f.reading - f.postings < budget;
    if terms is not null then
        perform rag.rewrite_blocks_v1(tenant, terms, audiences, firsts, lasts, freshness, places);
        more := taken >= budget;
    end if;

    -- dead postings, when it is worth it, and not while there is more to take in
    if not more then
        select * into sweep from rag.sweep s where s.tenant_id = tenant;
        if sweep.tenant_id is null then
            select array_agg(t.ordinal order by t.ordinal), sum(t.chunks), min(t.buried_at)
            into dead, dead_chunks, oldest
            from rag.tombstone t
            where t.tenant_id = tenant;
            if oldest <= clock_timestamp() - make_interval(secs => sweep_after_s)
                or dead_chunks >= sweep_share * (
                    select coalesce(sum(c.chunks), 0) from rag.corpus_change c where c.tenant_id = tenant
                )
            then
                insert into rag.sweep (tenant_id, ordinals, term, audience, first_chunk)
                values (tenant, dead, '', -9223372036854775808, 0)
                returning * into sweep;
            else
                sweep_at := oldest + make_interval(secs => sweep_after_s);
            end if;
        end if;
        if sweep.tenant_id is not null then
            with block as materialized (
                select b.*
                from (
                    select p.*,
                        sum(p.postings) over (order by p.term, p.audience, p.first_chunk rows unbounded preceding) as reading
                    from (
                        select p.term, p.audience, p.first_chunk, p.last_chunk, p.postings
                        from rag.posting p
                        where p.tenant_id = tenant
                            and (p.term, p.audience, p.first_chunk) > (sweep.term, sweep.audience, sweep.first_chunk)
                        order by p.term, p.audience, p.first_chunk
                        limit sweep_budget
                    ) p
                ) b
                where b.reading - b.postings < sweep_budget
            ),
            struck as (
                select b.term, b.audience, b.first_chunk, b.last_chunk, p.fresh, p.place
                from block b
                cross join lateral (
                    select p.fresh, p.ctid as place, p.chunk_ids
                    from rag.posting p
                    where p.tenant_id = tenant and p.term = b.term and p.audience = b.audience
                        and p.first_chunk = b.first_chunk
                    offset 0
                ) p
                where width_bucket((b.first_chunk >> 20) - 1, sweep.ordinals) < width_bucket(b.last_chunk >> 20, sweep.ordinals)
                    and (
                        select bool_or(u >> 20 in (select unnest(sweep.ordinals))) from unnest(p.chunk_ids) u
                    )
            )
            select array_agg(s.term), array_agg(s.audience), array_agg(s.first_chunk), array_agg(s.last_chunk),
                array_agg(s.fresh), array_agg(s.place),
                (select sum(b.postings) from block b),
                (select b.term from block b order by b.term desc, b.audience desc, b.first_chunk desc limit 1),
                (select b.audience from block b order by b.term desc, b.audience desc, b.first_chunk desc limit 1),
                (select b.first_chunk from block b order by b.term desc, b.audience desc, b.first_chunk desc limit 1)
            into terms, audiences, firsts, lasts, freshness, places, looked, last_term, last_audience, last_first
            from struck s;
            if terms is not null then
                perform rag.rewrite_blocks_v1(tenant, terms, audiences, firsts, lasts, freshness, places);
            end if;
            if coalesce(looked, 0) < sweep_budget then
                -- every block has been seen since these died, and a dead version gets no new ones
                delete from rag.tombstone t where t.tenant_id = tenant and t.ordinal = any (sweep.ordinals);
                delete from rag.sweep s where s.tenant_id = tenant;
            else
                update rag.sweep s
                set term = last_term, audience = last_audience, first_chunk = last_first
                where s.tenant_id = tenant;
            end if;
            -- the next step goes on, or sees whether others have died meanwhile
            more := true;
        end if;
    end if;

    -- sums into one row per audience: the first takes the others in
    with change as materialized (
        select c.*, row_number() over (partition by c.audience order by c.change_id) as place
        from (select c.* from rag.corpus_change c where c.tenant_id = tenant limit budget) c
    ),
    total as (
        select c.audience, sum(c.chunks) as chunks, sum(c.terms) as terms, sum(c.writes) as writes
        from change c
        group by c.audience
        having count(*) > 1
    ),
    folded as (
        delete from rag.corpus_change c
        using change f
        where f.place > 1 and c.tenant_id = tenant and c.change_id = f.change_id
    )
    update rag.corpus_change c
    set chunks = t.chunks, terms = t.terms, writes = t.writes
    from change f
    join total t on t.audience = f.audience
    where f.place = 1 and c.tenant_id = tenant and c.change_id = f.change_id;
    return next;
end
$$;

grant execute on function
    rag.variants_v1(text),
    rag.follow_vocabulary_v1(uuid, text[], bigint[], bigint[]),
    rag.rewrite_blocks_v1(uuid, text[], bigint[], bigint[], bigint[], boolean[], tid[]),
    rag.compact_v1(uuid, double precision, integer, integer, double precision, double precision)
to bulkhead_worker;

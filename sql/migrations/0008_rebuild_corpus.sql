-- The corpus under its final keys: document permissions as policy, chunk ids that say which version of which document they
-- belong to, and posting blocks with the title as a field of its own (retrieval.md 2 and 5).

-- 1. Document permissions. A document carries the groups that may read it; the documents of one set of groups share an
-- audience. Every row that tells something of a document's content carries its audience, and one policy stands on all of
-- them. So document frequencies, lengths and vocabularies too are over what the caller may read, and nothing else.

create table rag.audience (
    tenant_id uuid not null references rag.tenant,
    audience bigint not null,           -- a hash of the groups: no counter to queue at, and none that could tell of others
    groups text[] not null,             -- sorted
    primary key (tenant_id, audience),
    constraint audience_groups check (cardinality(groups) between 1 and 32),
    constraint audience_not_everyone check (audience <> 0)  -- 0: everyone in the tenant, and needs no row
);

-- The audiences that the sealed caller belongs to: everyone's, and those that name one of the caller's groups. A seal that
-- a queue function minted for upkeep reaches the whole tenant; a server cannot make one.
create function rag.current_audiences() returns bigint[]
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
declare
    context jsonb := seal.verified_context();
    named text[];
begin
    if context ->> 'reach' = 'tenant' then
        return array[0::bigint] || array(
            select a.audience from rag.audience a where a.tenant_id = (context ->> 'tenant')::uuid
        );
    end if;
    named := array(select jsonb_array_elements_text(context -> 'groups'));
    if cardinality(named) = 0 then
        return array[0::bigint];
    end if;
    return array[0::bigint] || array(
        select a.audience
        from rag.audience a
        where a.tenant_id = (context ->> 'tenant')::uuid and a.groups && named
    );
end
$$;
grant execute on function rag.current_audiences() to bulkhead_app, bulkhead_queue;

-- The audience of a set of groups, made when it is new. Nobody puts a document out of their own sight: BH004.
create function rag.audience_of_v1(named text[]) returns bigint
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    context jsonb := seal.verified_context();
    sorted text[] := array(select distinct n collate "C" from unnest(named) n order by 1);
    found_audience bigint;
begin
    if cardinality(sorted) = 0 then
        return 0;
    end if;
    if not sorted && array(select jsonb_array_elements_text(context -> 'groups')) then
        raise exception 'not a member' using errcode = 'BH004';
    end if;
    found_audience := ('x' || encode(substr(sha256(convert_to(array_to_json(sorted)::text, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint;
    insert into rag.audience (tenant_id, audience, groups)
    values ((context ->> 'tenant')::uuid, found_audience, sorted)
    on conflict (tenant_id, audience) do nothing;
    -- two sets under one hash would share their readers: refuse (one in 2^64)
    if exists (
        select from rag.audience a
        where a.tenant_id = (context ->> 'tenant')::uuid and a.audience = found_audience and a.groups <> sorted
    ) then
        raise exception 'audience collision' using errcode = 'BH004';
    end if;
    return found_audience;
end
$$;
grant execute on function rag.audience_of_v1(text[]) to bulkhead_app;

alter table rag.audience enable row level security;
alter table rag.audience force row level security;
create policy audience_control on rag.audience to bulkhead_owner using (true) with check (true);

-- The wall of every table that tells of content.
create procedure rag.isolate_by_audience(target regclass)
language plpgsql
set search_path = ''
as $$
begin
    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format('drop policy if exists tenant_isolation on %s', target);
    execute format(
        'create policy tenant_isolation on %s to bulkhead_app '
        'using (tenant_id = (select rag.current_tenant()) and audience = any ((select rag.current_audiences())::bigint[])) '
        'with check (tenant_id = (select rag.current_tenant()) and audience = any ((select rag.current_audiences())::bigint[]))',
        target
    );
end
$$;
call rag.isolate_by_audience('rag.audience');
grant select on rag.audience to bulkhead_app;

-- A seal for upkeep: embedding, compaction, recall samples. It reaches every audience of the tenant.
create function seal.mint_v2(tenant uuid, subject text, lifetime_s double precision) returns text
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    signer seal.key;
    now_s double precision := extract(epoch from clock_timestamp());
    payload text;
begin
    select * into strict signer from seal.key where active;
    payload := jsonb_build_object(
        'tenant', tenant, 'sub', subject, 'groups', '[]'::jsonb, 'jti', '[]'::jsonb, 'reach', 'tenant',
        'iat', now_s, 'exp', now_s + lifetime_s
    )::text;
    return signer.kid || '.'
        || encode(sha256(signer.outer_pad || sha256(signer.inner_pad || convert_to(payload, 'UTF8'))), 'hex')
        || '.' || payload;
end
$$;
grant execute on function seal.mint_v2(uuid, text, double precision) to bulkhead_queue;

-- 2. What a tenant may set for its own searches.
alter table rag.tenant
    add column bm25_weight double precision,    -- null: the product's default
    add column vector_weight double precision,
    add column cache_results boolean not null default true,
    add column model_id smallint references rag.embedding_model,  -- null: the installation's default
    add constraint tenant_weights check (
        (bm25_weight is null) = (vector_weight is null)
        and (bm25_weight is null or (bm25_weight >= 0 and vector_weight >= 0 and bm25_weight + vector_weight > 0))
    );

-- 3. Ordinals: one for every version of a document's text, in the order of writing. chunk_id = ordinal << 20 | number, so
-- that a document's chunks are one range, and one row outdates them all. Like every sequence value it never leaves the server.
create sequence rag.ordinal_seq as bigint;
grant usage on sequence rag.ordinal_seq to bulkhead_app;

-- what is stored already moves to new ids above all old ones; the owner sees it while row-level security is not forced
do $$
declare
    target text;
begin
    foreach target in array array['document', 'chunk', 'embedding', 'tombstone', 'corpus_change'] loop
        execute format('alter table rag.%I no force row level security', target);
    end loop;
end
$$;
select setval('rag.ordinal_seq', (select coalesce(max(chunk_id) >> 20, 0) + 1 from rag.chunk));

alter table rag.document
    add column ordinal bigint,
    add column groups text[] not null default '{}',
    add column audience bigint not null default 0,
    add column terms bigint not null default 0;
update rag.document d
set ordinal = o.ordinal
from (
    select w.tenant_id, w.document_id, nextval('rag.ordinal_seq') as ordinal
    from (select tenant_id, document_id from rag.document order by updated_at, document_id) w
) o
where d.tenant_id = o.tenant_id and d.document_id = o.document_id;
alter table rag.document
    alter column ordinal set not null,
    alter column audience drop default,
    add constraint document_ordinal_unique unique (tenant_id, ordinal),
    add constraint document_chunks_fit check (chunks < 1048576);

alter table rag.embedding drop constraint embedding_chunk;
alter table rag.chunk
    add column audience bigint not null default 0,
    drop column terms;
alter table rag.embedding add column audience bigint not null default 0;
update rag.embedding e
set chunk_id = d.ordinal << 20 | c.number
from rag.chunk c
join rag.document d on d.tenant_id = c.tenant_id and d.document_id = c.document_id
where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id;
update rag.chunk c
set chunk_id = d.ordinal << 20 | c.number
from rag.document d
where d.tenant_id = c.tenant_id and d.document_id = c.document_id;
alter table rag.chunk alter column audience drop default;
alter table rag.embedding
    alter column audience drop default,
    add constraint embedding_chunk foreign key (tenant_id, chunk_id) references rag.chunk on delete cascade;

-- 4. The lexical index anew. A writer adds fresh blocks of one document's postings; compaction makes base blocks of them,
-- which for one term and audience lie in the order of their chunks and do not overlap.
drop function rag.search_v1(text, text, public.halfvec, smallint, integer, double precision, double precision, integer);
drop function rag.put_document_v1(uuid, text, text, text, jsonb, bytea, text, integer[], integer[], text[], text[]);
drop function rag.delete_document_v1(uuid);
drop function rag.drop_chunks_v1(uuid);
drop table rag.posting;
drop sequence rag.posting_block_seq;
drop sequence rag.chunk_id_seq;

create table rag.posting (
    tenant_id uuid not null references rag.tenant,
    term text not null,
    audience bigint not null,
    first_chunk bigint not null,
    last_chunk bigint not null,
    postings smallint not null,
    fresh boolean not null,
    chunk_ids bigint[] not null,            -- ascending
    frequencies smallint[] not null,        -- of the term in the headings and text of each chunk
    title_frequencies smallint[] not null,  -- and in its document's title
    lengths smallint[] not null,            -- BM25's dl: terms of each chunk, its headings and title
    primary key (tenant_id, term, audience, first_chunk) include (last_chunk, postings),
    constraint posting_block_size check (postings between 1 and 128),
    constraint posting_block_shape check (
        cardinality(chunk_ids) = postings and cardinality(frequencies) = postings
        and cardinality(title_frequencies) = postings and cardinality(lengths) = postings
        and first_chunk = chunk_ids[1] and last_chunk = chunk_ids[postings]
    )
) partition by hash (tenant_id);
create index posting_fresh on rag.posting (tenant_id, audience, term) where fresh;

-- The vocabulary, as of the last compaction: which terms there are, and what a misspelt word may have meant.
create table rag.term (
    tenant_id uuid not null references rag.tenant,
    audience bigint not null,
    term text not null,
    df integer not null,
    primary key (tenant_id, audience, term)
);
-- Each term under itself and under each form with one letter left out (symmetric deletion): two words that are one edit
-- apart share a form, so equality finds them, which is what row-level security leaves an index for.
create table rag.spelling (
    tenant_id uuid not null references rag.tenant,
    audience bigint not null,
    variant text not null,
    term text not null,
    primary key (tenant_id, audience, variant, term)
);

-- Versions of documents whose postings still stand; searches take them out before the top-k.
drop table rag.tombstone;
create table rag.tombstone (
    tenant_id uuid not null references rag.tenant,
    ordinal bigint not null,
    audience bigint not null,
    primary key (tenant_id, ordinal) include (audience)
);

-- N, the sum of lengths and the number of writes as append-only changes; the sum of writes is the corpus version.
truncate rag.corpus_change;
alter table rag.corpus_change
    add column audience bigint not null,
    add column writes integer not null;

do $$
declare
    part integer;
    target regclass;
begin
    for part in 0..15 loop
        execute format(
            'create table rag.%I partition of rag.posting for values with (modulus 16, remainder %s)',
            'posting_' || lpad(part::text, 2, '0'), part
        );
    end loop;
end
$$;

-- What is searched for in a text: the lexemes of the tenant's language, and exact codes under a leading '=', which the
-- parser of PostgreSQL takes apart ('10b-5' is '10b' and '-5' to it, '§78j' one word). A code has a digit, and hyphens, dots,
-- slashes or bracketed parts; it stands for its outer parts too: 78j(b)(1) for 78j(b).
create function rag.lexemes_v1(config regconfig, body text)
returns table (term text, frequency integer)
language sql immutable parallel safe security invoker
set search_path = ''
as $$
    select w.lexeme, cardinality(w.positions)
    from unnest(to_tsvector(config, translate(body, '§¶', '  '))) as w
    union all
    select '=' || c.base || left(c.brackets, e.upto), count(*)::integer
    from regexp_matches(
        translate(lower(body), '–‑', '--'),
        '([[:alnum:]]+(?:[-./][[:alnum:]]+)+)((?:\([[:alnum:]]{1,6}\))*)|([[:alnum:]]+)((?:\([[:alnum:]]{1,6}\))+)',
        'g'
    ) as m
    cross join lateral (select coalesce(m[1], m[3]) as base, coalesce(m[2], m[4]) as brackets) c
    cross join lateral (
        select 0 as upto where m[1] is not null
        union all
        select i from generate_series(1, length(c.brackets)) i where substr(c.brackets, i, 1) = ')'
    ) e
    where c.base ~ '[0-9]' and length(c.base) + length(c.brackets) <= 64
    group by 1
$$;

-- Makes the postings of the chunks of these versions, and counts them in. Codes are terms without length.
create function rag.index_ordinals_v1(tenant uuid, ordinals bigint[]) returns void
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    config regconfig;
begin
    select t.language into strict config from rag.tenant t where t.tenant_id = tenant;
    with version as materialized (
        select d.document_id, d.ordinal, d.audience, d.title
        from rag.document d
        where d.tenant_id = tenant and d.ordinal = any (ordinals)
    ),
    piece as materialized (
        select c.chunk_id, v.ordinal, v.audience, concat_ws(E'\n', nullif(c.heading, ''), c.text) as body
        from version v
        join rag.chunk c
            on c.tenant_id = tenant and c.chunk_id >= v.ordinal << 20 and c.chunk_id < (v.ordinal + 1) << 20
    ),
    title_word as materialized (
        select v.ordinal, w.term, w.frequency
        from version v
        cross join lateral rag.lexemes_v1(config, v.title) w
    ),
    word as materialized (
        select
            f.chunk_id, f.ordinal, f.audience, f.term,
            least(sum(f.frequency), 32767)::smallint as frequency,
            least(sum(f.title_frequency), 32767)::smallint as title_frequency
        from (
            select p.chunk_id, p.ordinal, p.audience, w.term, w.frequency, 0 as title_frequency
            from piece p
            cross join lateral rag.lexemes_v1(config, p.body) w
            union all
            select p.chunk_id, p.ordinal, p.audience, t.term, 0, t.frequency
            from piece p
            join title_word t on t.ordinal = p.ordinal
        ) f
        group by f.chunk_id, f.ordinal, f.audience, f.term
    ),
    measured as materialized (
        select
            w.chunk_id, w.ordinal,
            coalesce(least(sum(w.frequency + w.title_frequency) filter (where w.term !~ '^='), 32767), 0)::smallint as length
        from word w
        group by w.chunk_id, w.ordinal
    ),
    counted as materialized (
        select v.ordinal, v.audience, count(p.chunk_id) as chunks, coalesce(sum(m.length), 0) as terms
        from version v
        left join piece p on p.ordinal = v.ordinal
        left join measured m on m.chunk_id = p.chunk_id
        group by v.ordinal, v.audience
    ),
    change as (
        insert into rag.corpus_change (tenant_id, audience, chunks, terms, writes)
        select tenant, n.audience, sum(n.chunks), sum(n.terms), count(*)
        from counted n
        group by n.audience
    ),
    measure as (
        update rag.document d
        set terms = n.terms
        from counted n
        where d.tenant_id = tenant and d.ordinal = n.ordinal
    )
    insert into rag.posting (
        tenant_id, term, audience, first_chunk, last_chunk, postings, fresh, chunk_ids, frequencies, title_frequencies, lengths
    )
    select
        tenant, b.term, b.audience, min(b.chunk_id), max(b.chunk_id), count(*), true,
        array_agg(b.chunk_id order by b.chunk_id),
        array_agg(b.frequency order by b.chunk_id),
        array_agg(b.title_frequency order by b.chunk_id),
        array_agg(b.length order by b.chunk_id)
    from (
        select w.*, m.length,
            (row_number() over (partition by w.term, w.audience order by w.chunk_id) - 1) / 128 as block
        from word w
        join measured m on m.chunk_id = w.chunk_id
    ) b
    group by b.term, b.audience, b.block;
end
$$;

-- the postings of what is stored already; the owner is not held by the wall while it is being built
do $$
declare
    batch record;
begin
    for batch in
        select d.tenant_id, array_agg(d.ordinal) as ordinals
        from (
            select d.tenant_id, d.ordinal, sum(d.chunks) over (partition by d.tenant_id order by d.ordinal) / 2000 as part
            from rag.document d
        ) d
        group by d.tenant_id, d.part
    loop
        perform rag.index_ordinals_v1(batch.tenant_id, batch.ordinals);
    end loop;
end
$$;

do $$
declare
    target regclass;
begin
    for target in
        select c.oid::regclass
        from pg_class c
        where c.relnamespace = 'rag'::regnamespace
            and c.relkind in ('r', 'p')
            and c.relname ~ '^(document|chunk|embedding|posting)(_\d\d)?$|^(tombstone|corpus_change|term|spelling)$'
    loop
        call rag.isolate_by_audience(target);
    end loop;
end
$$;

-- What is said about a document is said by those who may read it: else one could bury, or put words into, what is hidden
-- from oneself. (In these policies too rag.document and rag.chunk are only what the caller may read.)
create policy of_a_readable_document on rag.tombstone as restrictive for insert to bulkhead_app
with check (exists (select from rag.document d where d.tenant_id = tombstone.tenant_id and d.ordinal = tombstone.ordinal and d.audience = tombstone.audience));
create policy of_a_readable_document on rag.chunk as restrictive for insert to bulkhead_app
with check (exists (select from rag.document d where d.tenant_id = chunk.tenant_id and d.document_id = chunk.document_id));
create policy of_a_readable_chunk on rag.embedding as restrictive for insert to bulkhead_app
with check (exists (select from rag.chunk c where c.tenant_id = embedding.tenant_id and c.chunk_id = embedding.chunk_id));

-- An index is changed by whoever may write documents; what it is folded into, by the worker alone.
grant select, insert on rag.posting, rag.tombstone, rag.corpus_change to bulkhead_app;
grant select on rag.term, rag.spelling to bulkhead_app;
grant delete on rag.posting, rag.tombstone, rag.corpus_change to bulkhead_worker;
grant insert, update, delete on rag.term, rag.spelling to bulkhead_worker;

-- 5. Writing a document.

-- How many writes the caller can see: what a search names to be told that it is fresh, and what outdates a cached result.
create function rag.corpus_version_v1() returns bigint
language sql stable security invoker
set search_path = ''
as $$
    select coalesce(sum(s.writes), 0) from rag.corpus_change s where s.tenant_id = rag.current_tenant();
$$;

-- Takes a version out of the searchable corpus. Postings stay until compaction; the tombstone hides them.
create function rag.drop_version_v1(document uuid, version_ordinal bigint) returns void
language sql volatile security invoker
set search_path = ''
as $$
    insert into rag.tombstone (tenant_id, ordinal, audience)
    select d.tenant_id, version_ordinal, d.audience
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

-- Inserts or replaces the document that `source` names. The same content for the same readers changes nothing and says
-- 'unchanged'; other readers alone keep the vectors. Chunks arrive as parallel arrays in document order.
-- Raises BH003 when the source names a document that the caller may not read, BH004 as rag.audience_of_v1.
create function rag.put_document_v2(
    document uuid,
    document_source text,
    document_title text,
    document_media_type text,
    document_metadata jsonb,
    document_groups text[],
    hash bytea,
    body text,
    starts integer[],
    ends integer[],
    headings text[],
    texts text[]
)
returns table (outcome text, version integer, corpus_version bigint)
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    -- null keeps the readers: a second put that does not speak of them must not open the document to everyone
    new_audience bigint := case when document_groups is null then 0 else rag.audience_of_v1(document_groups) end;
    sorted_groups text[] := array(select distinct g collate "C" from unnest(document_groups) g order by 1);
    new_ordinal bigint := nextval('rag.ordinal_seq');
    stored rag.document;
    new_version integer;
begin
    for attempt in 1..3 loop
        insert into rag.document as d (
            tenant_id, document_id, source, title, media_type, metadata, groups, audience, content_hash, text, chunks, ordinal
        )
        values (
            tenant, document, document_source, document_title, document_media_type, document_metadata, sorted_groups,
            new_audience, hash, body, cardinality(texts), new_ordinal
        )
        -- no target: two first writers may collide on either of the two unique keys
        on conflict do nothing;
        if found then
            new_version := 1;
            outcome := 'created';
            exit;
        end if;
        select * into stored
        from rag.document d
        where d.tenant_id = tenant and d.source = document_source
        for update;
        -- not found: it was deleted between the two statements, so insert again; or it is not the caller's to see
        if found then
            if document_groups is null then
                new_audience := stored.audience;
                sorted_groups := stored.groups;
            end if;
            if stored.content_hash = hash and stored.audience = new_audience then
                return query select 'unchanged'::text, stored.version, rag.corpus_version_v1();
                return;
            end if;
            new_version := stored.version + 1;
            outcome := 'updated';
            exit;
        end if;
    end loop;
    if outcome is null then
        raise exception 'source taken' using errcode = 'BH003';
    end if;

    insert into rag.chunk (tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, audience)
    select tenant, new_ordinal << 20 | (p.n - 1), coalesce(stored.document_id, document), p.n - 1, p.start_char, p.end_char, p.heading, p.text, new_audience
    from unnest(starts, ends, headings, texts) with ordinality as p (start_char, end_char, heading, text, n);

    if outcome = 'updated' then
        if stored.content_hash = hash then
            insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
            select tenant, e.model_id, new_ordinal << 20 | (e.chunk_id & 1048575), stored.document_id, e.vector, new_audience
            from rag.embedding e
            where e.tenant_id = tenant
                and e.chunk_id >= stored.ordinal << 20
                and e.chunk_id < (stored.ordinal + 1) << 20;
        end if;
        perform rag.drop_version_v1(stored.document_id, stored.ordinal);
        update rag.document d
        set title = document_title, media_type = document_media_type, metadata = document_metadata,
            groups = sorted_groups, audience = new_audience, content_hash = hash, text = body,
            chunks = cardinality(texts), ordinal = new_ordinal, version = new_version, updated_at = clock_timestamp()
        where d.tenant_id = tenant and d.document_id = stored.document_id;
    end if;
    perform rag.index_ordinals_v1(tenant, array[new_ordinal]);
    corpus_version := rag.corpus_version_v1();
    perform queue.enqueue_embedding_v2(
        coalesce(stored.document_id, document),
        new_audience,
        (select sum(s.writes) from rag.corpus_change s where s.tenant_id = tenant and s.audience = new_audience)
    );
    return query select outcome, new_version, corpus_version;
end
$$;

-- Returns the corpus version without the document; null when there was none.
create function rag.delete_document_v2(document uuid) returns bigint
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    stored rag.document;
begin
    select * into stored from rag.document d where d.tenant_id = tenant and d.document_id = document for update;
    if not found then
        return null;
    end if;
    perform rag.drop_version_v1(document, stored.ordinal);
    delete from rag.document d where d.tenant_id = tenant and d.document_id = document;
    perform queue.finish_embedding_v1(document);
    return rag.corpus_version_v1();
end
$$;

grant execute on function
    rag.lexemes_v1(regconfig, text),
    rag.index_ordinals_v1(uuid, bigint[]),
    rag.corpus_version_v1(),
    rag.drop_version_v1(uuid, bigint),
    rag.put_document_v2(
        uuid, text, text, text, jsonb, text[], bytea, text, integer[], integer[], text[], text[]
    ),
    rag.delete_document_v2(uuid)
to bulkhead_app;

-- 6. The queue of documents without vectors: its seals reach every audience, and what it tells is of documents that the
-- caller may read.
set local role bulkhead_queue;
alter table queue.embedding
    add column audience bigint not null default 0,
    -- The writes to this audience up to this one. Corpus versions of callers with different groups do not compare; but each
    -- of them counts these writes, so one that is lower is of an earlier moment.
    add column version bigint not null default 0;

create function queue.enqueue_embedding_v2(document uuid, readers bigint, written bigint) returns void
language sql volatile security definer
set search_path = ''
as $$
    insert into queue.embedding (tenant_id, document_id, audience, version)
    values (rag.current_tenant(), document, readers, written)
    on conflict (tenant_id, document_id)
    do update set available_at = clock_timestamp(), attempts = 0, audience = excluded.audience, version = excluded.version
    where embedding.audience = any ((select rag.current_audiences())::bigint[]);
    select pg_notify('bulkhead_embedding', '');
$$;
drop function queue.enqueue_embedding_v1(uuid);

create or replace function queue.finish_embedding_v1(document uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.embedding q
    where q.tenant_id = rag.current_tenant()
        and q.document_id = document
        and q.audience = any ((select rag.current_audiences())::bigint[]);
$$;

-- How many documents still wait for vectors.
create or replace function queue.pending_embeddings_v1() returns bigint
language sql stable security definer
set search_path = ''
as $$
    select count(*)
    from queue.embedding q
    where q.tenant_id = (select rag.current_tenant())
        and q.audience = any ((select rag.current_audiences())::bigint[]);
$$;

-- Whether the vectors of any write up to this version of the caller's are still being made.
create function queue.embeddings_behind_v1(written bigint) returns boolean
language sql stable security definer
set search_path = ''
as $$
    select exists (
        select
        from queue.embedding q
        where q.tenant_id = (select rag.current_tenant())
            and q.audience = any ((select rag.current_audiences())::bigint[])
            and q.version <= written
    );
$$;

create function queue.claim_embeddings_v2(wanted integer, lease_s double precision)
returns table (document_id uuid, attempts integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with due as materialized (
        select q.tenant_id, q.document_id
        from queue.embedding q
        where q.available_at <= clock_timestamp()
        order by q.available_at
        for update skip locked
        limit wanted
    )
    update queue.embedding e
    set available_at = clock_timestamp() + make_interval(secs => lease_s * (1 << least(e.attempts, 6))),
        attempts = e.attempts + 1
    from due
    where e.tenant_id = due.tenant_id and e.document_id = due.document_id
    returning e.document_id, e.attempts, seal.mint_v2(e.tenant_id, 'system:embedder', 600);
$$;
drop function queue.claim_embeddings_v1(integer, double precision);
-- the owner's default privileges keep everybody off its functions; this role has none of its own
revoke execute on function
    queue.enqueue_embedding_v2(uuid, bigint, bigint), queue.embeddings_behind_v1(bigint),
    queue.claim_embeddings_v2(integer, double precision)
from public;
grant execute on function queue.enqueue_embedding_v2(uuid, bigint, bigint), queue.embeddings_behind_v1(bigint) to bulkhead_app;
grant execute on function queue.claim_embeddings_v2(integer, double precision) to bulkhead_worker;
reset role;

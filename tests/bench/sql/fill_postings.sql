-- words
-- Of the staged batch, as rag.index_ordinals_v1 has them, kept aside until all of the corpus has been read.
with
piece as materialized (
    select d.ordinal, d.ordinal << 20 | c.number as chunk_id, concat_ws(E'\n', nullif(c.heading, ''), c.text) as body
    from bench.staged_chunk c
    join bench.staged_document d on d.tenant_id = c.tenant_id and d.number = c.document
),
title_word as materialized (
    select d.ordinal, w.term, w.frequency
    from bench.staged_document d
    join rag.tenant t on t.tenant_id = d.tenant_id
    cross join lateral rag.lexemes_v1(t.language, d.title) w
),
word as materialized (
    select
        f.chunk_id, f.term, sum(f.frequency)::smallint as frequency, sum(f.title_frequency)::smallint as title_frequency
    from (
        select p.chunk_id, w.term, w.frequency, 0 as title_frequency
        from rag.tenant t
        cross join piece p
        cross join lateral rag.lexemes_v1(t.language, p.body) w
        where t.tenant_id = $1
        union all
        select p.chunk_id, t.term, 0, t.frequency
        from piece p
        join title_word t on t.ordinal = p.ordinal
    ) f
    group by f.chunk_id, f.term
),
measured as materialized (
    select
        w.chunk_id,
        coalesce(sum(w.frequency + w.title_frequency) filter (where w.term !~ '^='), 0)::smallint as length
    from word w
    group by w.chunk_id
),
counted as (
    insert into bench.measure (ordinal, chunks, terms)
    select m.chunk_id >> 20, count(*), sum(m.length)
    from measured m
    group by 1
)
insert into bench.word (term, chunk_id, frequency, title_frequency, length)
select w.term, w.chunk_id, w.frequency, w.title_frequency, m.length
from word w
join measured m on m.chunk_id = w.chunk_id;

-- blocks
-- Base blocks as compaction leaves those of a corpus that only grew: in the order of their chunks, disjoint, 128 postings
-- each but the last. As the tenant: the wall checks every block.
insert into rag.posting (
    tenant_id, term, audience, first_chunk, last_chunk, postings, fresh, chunk_ids, frequencies, title_frequencies, lengths
)
select
    $1, b.term, 0, min(b.chunk_id), max(b.chunk_id), count(*), false,
    array_agg(b.chunk_id order by b.chunk_id),
    array_agg(b.frequency order by b.chunk_id),
    array_agg(b.title_frequency order by b.chunk_id),
    array_agg(b.length order by b.chunk_id)
from (
    select w.*, (row_number() over (partition by w.term order by w.chunk_id) - 1) / 128 as block
    from bench./*part*/ w
) b
group by b.term, b.block;

-- lengths
update rag.document d
set terms = m.terms
from bench.measure m
where d.tenant_id = $1 and d.ordinal = m.ordinal;

-- sums
insert into rag.corpus_change (tenant_id, audience, chunks, terms, writes)
select $1, 0, sum(m.chunks), sum(m.terms), count(*)
from bench.measure m;

-- vocabulary
-- By the function that compaction calls.
select rag.follow_vocabulary_v1($1, array_agg(k.term), array_agg(0::bigint), array_agg(k.df))
from (select w.term, count(*) as df from bench.word w group by w.term) k;

-- clear
truncate bench.word, bench.measure;

-- held
-- What the base blocks say of documents with ordinals in a row.
create temp table held on commit drop as
select p.term, u.*
from rag.posting p
cross join lateral unnest(p.chunk_ids, p.frequencies, p.title_frequencies, p.lengths)
    as u (chunk_id, frequency, title_frequency, length)
where p.tenant_id = $1 and not p.fresh
    and p.first_chunk < ($3::bigint + 1) << 20 and p.last_chunk >= $2::bigint << 20
    and u.chunk_id >= $2::bigint << 20 and u.chunk_id < ($3::bigint + 1) << 20;

-- room
-- Blocks under whose keys the next statement would write; rolled back like the rest.
delete from rag.posting p
where p.tenant_id = $1 and p.first_chunk >= $2::bigint << 20 and p.first_chunk < ($3::bigint + 1) << 20;

-- made
select rag.index_ordinals_v1($1, array(select n from generate_series($2::bigint, $3::bigint) n));

-- compared
-- How many postings there are, and how many are not the same.
select
    count(*) as postings,
    count(*) filter (
        where (h.frequency, h.title_frequency, h.length) is distinct from (m.frequency, m.title_frequency, m.length)
    ) as different
from (
    select p.term, u.*
    from rag.posting p
    cross join lateral unnest(p.chunk_ids, p.frequencies, p.title_frequencies, p.lengths)
        as u (chunk_id, frequency, title_frequency, length)
    where p.tenant_id = $1 and p.fresh
) m
full join held h on h.term = m.term and h.chunk_id = m.chunk_id;

-- Hybrid search in one round trip (retrieval.md 2-4): the first statement sets and checks the seal, the second searches.
--
-- Lexical leg: BM25 over posting blocks with statistics of this tenant alone. Dense leg: exact cosine over this tenant's
-- vectors. Both top lists are united, both scores are computed for every candidate, and the default fusion is the convex
-- combination with theoretical minima (Bruch et al., "An Analysis of Fusion Functions for Hybrid Retrieval").
--
-- Scores are integers (millionths), summed exactly and tied by chunk_id, so the same corpus gives the same bytes on every
-- run and plan. chunk_id orders a tenant's chunks by when they were written; it never leaves this function.
create function rag.search_v1(
    context text,
    query text,
    query_vector public.halfvec,        -- null: no embedder, or keyword mode
    vector_model smallint,
    wanted integer,
    lexical_weight double precision,
    dense_weight double precision,
    candidates integer
)
returns table (
    document_id uuid,
    source text,
    title text,
    version integer,
    number integer,
    heading text,
    start_char integer,
    end_char integer,
    text text,
    score double precision,
    lexical_rank integer,
    lexical_score double precision,
    lexical_part double precision,
    dense_rank integer,
    dense_score double precision,
    dense_part double precision,
    dense_imputed boolean,
    terms text[]
)
language plpgsql volatile security invoker
set search_path = ''
-- a pooled connection flips to a generic plan after five executions; that plan could use no index of one tenant
set plan_cache_mode = force_custom_plan
-- a tenant whose tombstones the planner's statistics do not know had them all looked through for each posting (2.5 s)
set enable_material = off
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.open_context_v1(context);
    config regconfig;
    -- typed variables, not literals: one numeric literal in the arithmetic doubled its time (retrieval.md 2)
    k1 constant double precision := 1.2;
    b constant double precision := 0.75;
    one constant double precision := 1;
    half constant double precision := 0.5;
    scale constant double precision := 1000000;
begin
    select t.language into strict config from rag.tenant t where t.tenant_id = tenant;
    return query
    with
    stats as materialized (
        select
            coalesce(sum(s.chunks), 0)::double precision as n,
            coalesce(sum(s.terms), 0)::double precision / nullif(sum(s.chunks), 0) as avgdl
        from rag.corpus_change s
        where s.tenant_id = tenant
    ),
    asked as materialized (
        -- a word that is asked for twice counts twice, which long queries gain by
        select w.lexeme, cardinality(w.positions) as times
        from unnest(to_tsvector(config, query)) as w
        where lexical_weight > 0
    ),
    occurrence as materialized (
        select p.term, a.times, u.chunk_id, u.frequency, u.length
        from asked a
        join rag.posting p on p.tenant_id = tenant and p.term = a.lexeme
        cross join lateral unnest(p.chunk_ids, p.frequencies, p.lengths) as u (chunk_id, frequency, length)
        where not exists (
            select from rag.tombstone d where d.tenant_id = tenant and d.chunk_id = u.chunk_id
        )
    ),
    inverse as (
        select o.term, ln(one + (s.n - count(*) + half) / (count(*) + half)) as idf
        from occurrence o
        cross join stats s
        group by o.term, s.n
    ),
    bm25 as materialized (
        select
            o.chunk_id,
            sum(round(
                scale * i.idf * o.times * o.frequency * (k1 + one)
                / (o.frequency + k1 * (one - b + b * o.length / s.avgdl))
            )::bigint)::bigint as points
        from occurrence o
        join inverse i on i.term = o.term
        cross join stats s
        group by o.chunk_id
    ),
    lexical as materialized (
        select l.chunk_id, row_number() over (order by l.points desc, l.chunk_id)::integer as place
        from bm25 l
        order by l.points desc, l.chunk_id
        limit candidates
    ),
    dense as materialized (
        select n.chunk_id, row_number() over (order by n.distance, n.chunk_id)::integer as place
        from (
            select e.chunk_id, e.vector operator(public.<=>) query_vector as distance
            from rag.embedding e
            where e.tenant_id = tenant and e.model_id = vector_model
                and dense_weight > 0 and query_vector is not null
            order by distance, e.chunk_id
            limit candidates
        ) n
    ),
    candidate as (
        select
            coalesce(l.chunk_id, d.chunk_id) as chunk_id,
            l.place as lexical_place,
            d.place as dense_place
        from lexical l
        full join dense d on d.chunk_id = l.chunk_id
    ),
    scored as materialized (
        select
            c.*,
            coalesce(k.points, 0) as points,
            case
                when dense_weight > 0 and query_vector is not null
                then round(scale * (one - (e.vector operator(public.<=>) query_vector)))::bigint
            end as cosine
        from candidate c
        left join bm25 k on k.chunk_id = c.chunk_id
        left join rag.embedding e
            on e.tenant_id = tenant and e.model_id = vector_model and e.chunk_id = c.chunk_id
    ),
    best as materialized (
        select
            max(s.points)::double precision as points,
            max(s.cosine)::double precision + scale as shifted,
            -- a leg without candidates has weight 0 and the other 1
            case when count(s.dense_place) = 0 then one when count(s.lexical_place) = 0 then 0
                else lexical_weight / (lexical_weight + dense_weight) end as lexical_share
        from scored s
    ),
    fused as (
        select
            s.*,
            b.lexical_share * case when b.points > 0 then s.points / b.points else 0 end as lexical_term,
            (one - b.lexical_share) * case
                -- the vector is still being made: imputed from the lexical leg, so that new text is not buried
                when s.cosine is null then case when b.points > 0 then s.points / b.points else 0 end
                when b.shifted > 0 then (s.cosine + scale) / b.shifted
                else 0
            end as dense_term,
            s.cosine is null and b.lexical_share < one as imputed
        from scored s
        cross join best b
    ),
    top as (
        select f.*, f.lexical_term + f.dense_term as total
        from fused f
        order by f.lexical_term + f.dense_term desc, f.chunk_id
        limit wanted
    ),
    -- for the hits alone: sorting the terms of every matching chunk took longer than scoring them
    matched as (
        select o.chunk_id, array_agg(o.term order by o.term) as terms
        from occurrence o
        join top t on t.chunk_id = o.chunk_id
        group by o.chunk_id
    )
    select
        c.document_id, d.source, d.title, d.version, c.number, c.heading, c.start_char, c.end_char, c.text,
        t.total, t.lexical_place, t.points / scale, t.lexical_term,
        t.dense_place, t.cosine / scale, t.dense_term, t.imputed, coalesce(m.terms, '{}')
    from top t
    join rag.chunk c on c.tenant_id = tenant and c.chunk_id = t.chunk_id
    join rag.document d on d.tenant_id = tenant and d.document_id = c.document_id
    left join matched m on m.chunk_id = t.chunk_id
    order by t.total desc, t.chunk_id;
end
$$;

grant execute on function
    rag.search_v1(text, text, public.halfvec, smallint, integer, double precision, double precision, integer)
to bulkhead_app;

-- Hybrid search in one round trip and one snapshot (retrieval.md 2-4). The function is stable, so that all of its statements
-- see what the calling statement sees: a compaction, an index build or a switch of models that commits meanwhile shows
-- itself wholly or not at all.
--
-- Lexical leg: BM25 over posting blocks, a term in the title counted with the tenant's title weight, statistics over what
-- the caller may read. Dense leg: exact cosine, or the tenant's own graph when it is large. Both top lists are united, both
-- scores computed for every candidate, and fused: by default the convex combination with theoretical minima (Bruch et al.,
-- "An Analysis of Fusion Functions for Hybrid Retrieval"), by argument reciprocal ranks.
--
-- Scores are whole numbers (millionths), whose sums are exact in double precision whatever the order, and ties go to the
-- earlier chunk, so the same corpus gives the same bytes on every run and plan.

-- The graphs that there are: a tenant's index on the vectors of one model. Kept by the maintenance process.
create table rag.vector_index (
    tenant_id uuid not null references rag.tenant,
    model_id smallint not null references rag.embedding_model,
    index_name text not null,
    ready boolean not null default false,
    built_chunks bigint,
    built_at timestamptz,
    primary key (tenant_id, model_id)
);
call rag.isolate('rag.vector_index');
-- not how large it is: that counts what the caller may not read
grant select (tenant_id, model_id, ready) on rag.vector_index to bulkhead_app;

-- What a result depends on besides its request and the corpus version. While vectors are being made it may change without
-- a write: it is not to be kept then.
create function rag.search_state_v1(settings rag.tenant, audiences bigint[]) returns jsonb
language sql stable security invoker
set search_path = ''
as $$
    select jsonb_build_object(
        'audiences', audiences,
        'weights', array[settings.bm25_weight, settings.vector_weight],
        'model_id', settings.model_id,
        'keep', settings.cache_results and not queue.embeddings_behind_v1(9223372036854775807)
    );
$$;
grant execute on function rag.search_state_v1(rag.tenant, bigint[]) to bulkhead_app;


-- How many live chunks have each term. Blocks count themselves; only those that a dead version falls into are looked into.
create function rag.document_frequencies_v1(tenant uuid, audiences bigint[], terms text[], dead bigint[]) returns bigint[]
language plpgsql stable security invoker
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
    if cardinality(dead) = 0 then
        return array(
            select coalesce(k.df, 0)
            from unnest(terms) with ordinality as a (term, place)
            cross join lateral (
                select sum(p.postings) as df
                from rag.posting p
                where p.tenant_id = tenant and p.term = a.term and p.audience = any (audiences)
            ) k
            order by a.place
        );
    end if;
    return array(
        select coalesce(k.df, 0)
        from unnest(terms) with ordinality as a (term, place)
        cross join lateral (
            select sum(
                p.postings - case
                    when width_bucket((p.first_chunk >> 20) - 1, dead) < width_bucket(p.last_chunk >> 20, dead)
                    then (select count(*) from unnest(p.chunk_ids) as c (chunk_id) where c.chunk_id >> 20 in (select unnest(dead)))
                    else 0
                end
            ) as df
            from rag.posting p
            where p.tenant_id = tenant and p.term = a.term and p.audience = any (audiences)
        ) k
        order by a.place
    );
end
$$;

-- How often a term occurs in each of the given chunks, which are ascending; only the blocks that hold one of them are read.
create function rag.occurrences_v1(tenant uuid, audiences bigint[], asked text, chunks bigint[], title_weight integer)
returns table (chunk_id bigint, frequency integer, length smallint)
language plpgsql stable security invoker
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    return query
    select c.chunk_id, p.frequencies[i.place] + title_weight * p.title_frequencies[i.place], p.lengths[i.place]
    from (
        select k.audience, k.first_chunk,
            width_bucket(k.first_chunk - 1, chunks) + 1 as low, width_bucket(k.last_chunk, chunks) as high
        from rag.posting k
        where k.tenant_id = tenant and k.term = asked and k.audience = any (audiences)
            and width_bucket(k.first_chunk - 1, chunks) < width_bucket(k.last_chunk, chunks)
        offset 0
    ) k
    cross join lateral (
        select p.chunk_ids, p.frequencies, p.title_frequencies, p.lengths
        from rag.posting p
        where p.tenant_id = tenant and p.term = asked and p.audience = k.audience and p.first_chunk = k.first_chunk
        offset 0
    ) p
    cross join lateral unnest(chunks[k.low:k.high]) as c (chunk_id)
    cross join lateral (select array_position(p.chunk_ids, c.chunk_id) as place offset 0) i
    where i.place is not null;
end
$$;
grant execute on function
    rag.document_frequencies_v1(uuid, bigint[], text[], bigint[]),
    rag.occurrences_v1(uuid, bigint[], text, bigint[], integer)
to bulkhead_app;

-- The candidates of a list, best first, with their places in it: as many as are wanted from the top; and, when only some of
-- a document are to be hits, as many again that are among those, or one long document would be all that is found.
create function rag.candidates_v1(list bigint[], wanted integer, per_document integer)
returns table (chunk_id bigint, place integer)
language plpgsql stable security invoker
rows 100
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    if per_document is null then
        return query
        select l.chunk_id, l.place::integer from unnest(list[:wanted]) with ordinality as l (chunk_id, place);
        return;
    end if;
    return query
    select c.chunk_id, c.place::integer
    from (
        select d.*, row_number() over (partition by d.of_document <= per_document order by d.place) as turn
        from (
            select l.chunk_id, l.place, row_number() over (partition by l.chunk_id >> 20 order by l.place) as of_document
            from unnest(list) with ordinality as l (chunk_id, place)
        ) d
    ) c
    where c.place <= wanted or (c.of_document <= per_document and c.turn <= wanted);
end
$$;
grant execute on function rag.candidates_v1(bigint[], integer, integer) to bulkhead_app;

create function rag.search_v2(
    context text,
    query text,
    phrases text[],                     -- regular expressions that every hit matches (rag/retrieval/query.py); null: none
    phrase_words text,                  -- their words, by which candidates are found
    query_vector public.halfvec,        -- null: no embedder, or keyword mode
    vector_model smallint,
    wanted integer,
    candidates integer,                 -- of each leg, before fusion
    lexical_weight double precision,    -- null, both: the tenant's, else 0.2 and 0.8
    dense_weight double precision,
    fusion text,                        -- 'convex' or 'rrf'
    document_filter jsonpath,           -- over a document's record (rag/retrieval/filters.py); null: none
    per_document integer,               -- so many hits of one document at most; null: any number
    -- so many postings are scored in about 25 ms; of longer lists only the shortlist's blocks are read
    posting_budget bigint default 60000
)
returns table (version bigint, state jsonb, report jsonb, hits jsonb)
language plpgsql stable security invoker
set search_path = ''
-- Planning for sixteen partitions took 3 ms of a search of 4: the plan is made once for a connection, and prunes when it runs.
-- The one statement that needs the tenant as a constant, for the predicate of its graph, is dynamic and planned each time.
set plan_cache_mode = force_generic_plan
-- a plan made while the tables were small would stay with the connection; for the same reason rows are looked up one by one
-- throughout (lateral, offset 0): joined, a tenant's chunks were all read for the sake of ten
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.open_context_v1(context);
    audiences bigint[] := rag.current_audiences();
    began timestamptz := clock_timestamp();
    filtered_at timestamptz;
    dense_at timestamptz;
    settings rag.tenant;
    lexical_part double precision := lexical_weight;
    dense_part double precision := dense_weight;
    corpus_version bigint;
    -- typed variables, not literals: one numeric literal in the arithmetic doubled its time (retrieval.md 2)
    n double precision;
    avgdl double precision;
    k1 constant double precision := 1.2;
    b constant double precision := 0.75;
    -- chosen on four public collections and reported on the fifth (docs/quality.md)
    title_weight constant integer := 2;
    zero constant double precision := 0;
    one constant double precision := 1;
    half constant double precision := 0.5;
    scale constant double precision := 1000000;
    rrf_k constant double precision := 60;
    -- above this cosine two chunks of one document say the same
    same constant double precision := 0.03;
    -- exact search over so many vectors takes about ten milliseconds
    exact_chunks constant bigint := 5000;
    -- how far down the lists of both legs are read: to their ends where documents make way for others
    depth integer := case when per_document is null then candidates end;
    shortlist_chunks constant integer := 500;
    -- writing times as text takes longer than all the rest of a filter
    timed boolean := document_filter::text ~ '(created|updated)_at';
    allowed bigint[];
    reachable bigint;
    dense_ids bigint[];
    dense_plan text := 'off';
    graph boolean := false;
    dimension integer;
    query_terms text[];
    times integer[];
    dfs bigint[];
    idfs double precision[];
    factors double precision[];
    in_phrase boolean[];
    nominating boolean[];
    dead bigint[];
    phrase_terms text[];
    expanded jsonb := '{}';
    pruned boolean := false;
    found_terms jsonb;
    found_hits jsonb;
begin
    select * into strict settings from rag.tenant t where t.tenant_id = tenant;
    if lexical_part is null then
        lexical_part := coalesce(settings.bm25_weight, 0.2);
        dense_part := coalesce(settings.vector_weight, 0.8);
    end if;
    if dense_part > 0 and query_vector is not null and settings.model_id <> vector_model then
        -- the tenant's vectors are another model's now: the caller embeds the query again with that one
        raise exception 'another model' using errcode = 'BH005', detail = settings.model_id;
    end if;

    select coalesce(sum(s.chunks), 0), coalesce(sum(s.terms), 0)::double precision / nullif(sum(s.chunks), 0),
        coalesce(sum(s.writes), 0)
    into n, avgdl, corpus_version
    from rag.corpus_change s
    where s.tenant_id = tenant and s.audience = any (audiences);
    reachable := n;
    if document_filter is not null then
        select coalesce(array_agg(d.ordinal), '{}'), coalesce(sum(d.chunks), 0)
        into allowed, reachable
        from rag.document d
        where d.tenant_id = tenant
            and d.audience = any (audiences)
            and (
                jsonb_build_object('source', d.source, 'title', d.title, 'media_type', d.media_type, 'metadata', d.metadata)
                || case
                    when timed then jsonb_build_object(
                        'created_at', to_char(d.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                        'updated_at', to_char(d.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                    )
                    else '{}'
                end
            ) @@ document_filter;
    end if;
    filtered_at := clock_timestamp();

    -- a phrase decides by itself who is a candidate
    if dense_part > 0 and query_vector is not null and phrases is null then
        if reachable > exact_chunks then
            graph := exists (
                select from rag.vector_index i where i.tenant_id = tenant and i.model_id = vector_model and i.ready
            );
        end if;
        if graph then
            dense_plan := 'hnsw';
            select m.dimension into strict dimension from rag.embedding_model m where m.model_id = vector_model;
            -- fewer than the candidates asked for would come back, silently (retrieval.md 1)
            perform set_config('hnsw.ef_search', least(1000, greatest(3 * candidates, 300))::text, true);
            -- and what a filter or the caller's groups take out is made up for
            perform set_config('hnsw.iterative_scan', 'strict_order', true);
            -- statistics that lag behind let a sort of everything look cheaper than the graph
            perform set_config('enable_sort', 'off', true);
            execute format(
                'select array_agg(f.chunk_id order by f.distance, f.chunk_id) from ('
                'select e.chunk_id, (e.vector::public.halfvec(%1$s)) operator(public.<=>) $1 as distance '
                'from rag.embedding e '
                'where e.tenant_id = $2 and e.model_id = $3 and e.audience = any ($4) %2$s '
                'order by (e.vector::public.halfvec(%1$s)) operator(public.<=>) $1 limit $6) f',
                dimension,
                case when allowed is not null then 'and (e.chunk_id >> 20) in (select unnest($5))' end
            )
            into dense_ids
            using query_vector, tenant, vector_model, audiences, allowed, coalesce(depth, 10 * candidates);
            perform set_config('enable_sort', 'on', true);
        end if;
        -- a graph that gives up early must not cost a hit
        if coalesce(cardinality(dense_ids), 0) < least(candidates, reachable)
            or (
                select sum(least(k.chunks, per_document)) < wanted
                from (select count(*) as chunks from unnest(dense_ids) as d (chunk_id) group by d.chunk_id >> 20) k
            )
        then
            dense_plan := case when dense_plan = 'hnsw' then 'exact after hnsw' else 'exact' end;
            if allowed is not null and reachable <= exact_chunks then
                select array_agg(f.chunk_id order by f.distance, f.chunk_id)
                into dense_ids
                from (
                    select e.chunk_id, e.vector operator(public.<=>) query_vector as distance
                    from unnest(allowed) as a (ordinal)
                    cross join lateral (
                        select e.chunk_id, e.vector
                        from rag.embedding e
                        where e.tenant_id = tenant and e.model_id = vector_model and e.audience = any (audiences)
                            and e.chunk_id >= a.ordinal << 20 and e.chunk_id < (a.ordinal + 1) << 20
                        offset 0
                    ) e
                    order by distance, e.chunk_id
                    limit depth
                ) f;
            else
                select array_agg(f.chunk_id order by f.distance, f.chunk_id)
                into dense_ids
                from (
                    select e.chunk_id, e.vector operator(public.<=>) query_vector as distance
                    from rag.embedding e
                    where e.tenant_id = tenant and e.model_id = vector_model and e.audience = any (audiences)
                        and (allowed is null or e.chunk_id >> 20 in (select unnest(allowed)))
                    order by distance, e.chunk_id
                    limit depth
                ) f;
            end if;
        end if;
    end if;
    dense_at := clock_timestamp();

    -- the words and how many live chunks have them; those that no document has, by the nearest words that there are
    if lexical_part > 0 or phrases is not null then
        dead := array(select d.ordinal from rag.tombstone d where d.tenant_id = tenant order by d.ordinal);
        if phrases is not null then
            phrase_terms := array(select w.term from rag.lexemes_v1(settings.language, phrase_words) w);
        end if;
        select array_agg(w.term), array_agg(w.frequency)
        into query_terms, times
        from rag.lexemes_v1(settings.language, query) w;
        dfs := rag.document_frequencies_v1(tenant, audiences, query_terms, dead);
        if 0 = any (dfs) then
            select coalesce(jsonb_object_agg(f.asked, f.near), '{}')
            into expanded
            from (
                select m.asked, jsonb_agg(m.term order by m.df desc, m.term) as near
                from (
                    select u.asked, s.term, sum(t.df) as df,
                        row_number() over (partition by u.asked order by sum(t.df) desc, s.term) as place
                    from (
                        select a.asked
                        from unnest(query_terms, dfs) as a (asked, df)
                        where a.df = 0 and a.asked ~ '^[[:alpha:]]{4,24}$'
                        order by a.asked
                        limit 8
                    ) u
                    cross join lateral (
                        select array_agg(left(u.asked, i - 1) || substr(u.asked, i + 1)) as variants
                        from generate_series(1, length(u.asked) + 1) i
                    ) v
                    cross join lateral (
                        select distinct n.term, n.audience
                        from rag.spelling n
                        where n.tenant_id = tenant and n.audience = any (audiences) and n.variant = any (v.variants)
                        offset 0
                    ) s
                    cross join lateral (
                        select k.df
                        from rag.term k
                        where k.tenant_id = tenant and k.audience = s.audience and k.term = s.term
                        offset 0
                    ) t
                    group by u.asked, s.term
                ) m
                where m.place <= 3
                group by m.asked
            ) f;
            if expanded <> '{}' then
                select array_agg(f.term), array_agg(f.times)
                into query_terms, times
                from (
                    select e.term, max(e.times) as times
                    from (
                        select a.term, a.times from unnest(query_terms, times, dfs) as a (term, times, df) where a.df > 0
                        union all
                        select x.term, a.times
                        from unnest(query_terms, times) as a (term, times)
                        cross join lateral jsonb_array_elements_text(expanded -> a.term) as x (term)
                    ) e
                    group by e.term
                ) f;
                dfs := rag.document_frequencies_v1(tenant, audiences, query_terms, dead);
            end if;
        end if;
        select
            array_agg(a.term order by a.place), array_agg(a.df order by a.place), array_agg(a.idf order by a.place),
            array_agg(scale * a.idf * a.times * (k1 + one) order by a.place),
            array_agg(a.term = any (phrase_terms) order by a.place),
            -- a list is read whole where those of rarer words cannot fill the shortlist without it
            array_agg(
                a.reading <= posting_budget or a.reading - a.df < shortlist_chunks or phrases is not null order by a.place
            )
        into query_terms, dfs, idfs, factors, in_phrase, nominating
        from (
            select
                f.term, f.times, f.df, ln(one + (n - f.df + half) / (f.df + half)) as idf,
                sum(f.df) over (order by f.df, f.term) as reading,
                row_number() over (order by f.df, f.term) as place
            from unnest(query_terms, times, dfs) as f (term, times, df)
            where f.df > 0
        ) a;
        pruned := coalesce(false = any (nominating), false);
        -- a word that only a deleted document had stands in the vocabulary until compaction
        if expanded <> '{}' then
            select coalesce(jsonb_object_agg(e.key, k.near) filter (where k.near is not null), '{}')
            into expanded
            from jsonb_each(expanded) e
            cross join lateral (
                select jsonb_agg(x.term order by x.place) as near
                from jsonb_array_elements_text(e.value) with ordinality as x (term, place)
                where x.term = any (query_terms)
            ) k;
        end if;
    end if;

    with
    nominated as materialized (
        select
            u.chunk_id,
            sum(round(
                u.factor * (u.frequency + title_weight * u.title_frequency)
                / (u.frequency + title_weight * u.title_frequency + k1 * (one - b) + k1 * b / avgdl * u.length)
            )) as points,
            count(*) filter (where u.in_phrase) as phrase_hits
        from (
            -- unnested in the select list, which takes a third of the time that a lateral join takes
            select
                a.factor, a.in_phrase, unnest(p.chunk_ids) as chunk_id, unnest(p.frequencies) as frequency,
                unnest(p.title_frequencies) as title_frequency, unnest(p.lengths) as length
            from unnest(query_terms, factors, in_phrase, nominating) as a (term, factor, in_phrase, nominates)
            -- looked up term by term: without statistics the planner would rather read all of a tenant's blocks
            cross join lateral (
                select p.chunk_ids, p.frequencies, p.title_frequencies, p.lengths
                from rag.posting p
                where p.tenant_id = tenant and p.term = a.term and p.audience = any (audiences)
                offset 0
            ) p
            where a.nominates
        ) u
        -- hashed subplans whatever the statistics say: looked through for each posting, tombstones took seconds
        where u.chunk_id >> 20 not in (select unnest(dead))
            and (allowed is null or u.chunk_id >> 20 in (select unnest(allowed)))
        group by u.chunk_id
    ),
    dense as materialized (
        select d.chunk_id, d.place from rag.candidates_v1(dense_ids, candidates, per_document) d
    ),
    shortlist as materialized (
        select s.chunk_id
        from rag.candidates_v1(
            array(
                select m.chunk_id
                from nominated m
                where pruned
                order by m.points desc, m.chunk_id
                limit case when per_document is null then shortlist_chunks end
            ),
            shortlist_chunks, per_document
        ) s
        union
        select d.chunk_id from dense d where pruned
    ),
    -- of the lists that are too long to be read, what they say of the shortlist
    completing as materialized (
        select o.chunk_id, sum(round(o.factor * o.frequency / (o.frequency + k1 * (one - b) + k1 * b / avgdl * o.length))) as points
        from (
            select a.factor, w.chunk_id, w.frequency, w.length
            from unnest(query_terms, factors, nominating) as a (term, factor, nominates)
            cross join lateral rag.occurrences_v1(
                tenant, audiences, a.term, array(select s.chunk_id from shortlist s order by s.chunk_id), title_weight
            ) w
            where pruned and not a.nominates
        ) o
        group by o.chunk_id
    ),
    completed as materialized (
        select f.chunk_id, sum(f.points) as points
        from (
            select m.chunk_id, m.points from nominated m where m.chunk_id in (select s.chunk_id from shortlist s)
            union all
            select c.chunk_id, c.points from completing c
        ) f
        where pruned
        group by f.chunk_id
    ),
    -- one of three comes to anything: a limit right behind its sort keeps the best and sorts nothing else
    pool as materialized (
        (
            select m.chunk_id, m.points
            from nominated m
            where phrases is null and not pruned
            order by m.points desc, m.chunk_id
            limit depth
        )
        union all
        (
            select c.chunk_id, c.points
            from completed c
            where phrases is null
            order by c.points desc, c.chunk_id
            limit depth
        )
        union all
        (
            select s.chunk_id, s.points
            from (
                select m.chunk_id, m.points
                from nominated m
                where phrases is not null and m.phrase_hits = cardinality(phrase_terms)
                order by m.points desc, m.chunk_id
                offset 0  -- so that phrases are looked for from the best chunk down, and no further than needed
            ) s
            where exists (
                select
                from rag.chunk c
                cross join lateral (
                    select d.title
                    from rag.document d
                    where d.tenant_id = tenant and d.document_id = c.document_id
                    offset 0
                ) d
                where c.tenant_id = tenant and c.chunk_id = s.chunk_id
                    and (
                        select bool_and(concat_ws(E'\n', d.title, c.heading, c.text) ~* p.pattern)
                        from unnest(phrases) as p (pattern)
                    )
            )
            limit depth
        )
    ),
    lexical as materialized (
        select l.chunk_id, l.place
        from rag.candidates_v1(
            array(select p.chunk_id from pool p order by p.points desc, p.chunk_id), candidates, per_document
        ) l
    ),
    -- materialized: the id is to reach the lookups below as a value, which an index takes, not as an expression
    candidate as materialized (
        select
            coalesce(l.chunk_id, d.chunk_id) as chunk_id,
            l.place as lexical_place,
            d.place as dense_place
        from lexical l
        full join dense d on d.chunk_id = l.chunk_id
    ),
    measured as materialized (
        select
            c.*,
            coalesce(k.points, zero) as points,
            case
                when dense_part > 0 and query_vector is not null
                -- a vector of zeros points nowhere: as if it were still to be made
                then round(scale * (one - nullif(e.vector operator(public.<=>) query_vector, 'NaN')))
            end as cosine,
            e.vector
        from candidate c
        left join (
            select m.chunk_id, m.points from nominated m where not pruned
            union all
            select f.chunk_id, f.points from completed f
        ) k on k.chunk_id = c.chunk_id
        left join lateral (
            select e.vector
            from rag.embedding e
            where e.tenant_id = tenant and e.model_id = vector_model and e.chunk_id = c.chunk_id
            offset 0
        ) e on true
    ),
    scored as materialized (
        select
            m.chunk_id, m.lexical_place, m.points, m.cosine, m.vector,
            case
                when phrases is null then m.dense_place
                when m.cosine is not null
                then row_number() over (order by m.cosine desc nulls last, m.chunk_id)::integer
            end as dense_place
        from measured m
    ),
    best as materialized (
        select
            max(s.points) as points,
            max(s.cosine) + scale as shifted,
            -- a leg without candidates has weight 0 and the other 1
            case when count(s.dense_place) = 0 then one when count(s.lexical_place) = 0 then zero
                else lexical_part / (lexical_part + dense_part) end as lexical_share
        from scored s
    ),
    fused as materialized (
        select
            s.*,
            case
                when fusion = 'rrf' then coalesce(b.lexical_share / (rrf_k + s.lexical_place), zero)
                else b.lexical_share * case when b.points > 0 then s.points / b.points else zero end
            end as lexical_term,
            (one - b.lexical_share) * case
                -- the vector is still being made: imputed from the lexical leg, so that new text is not buried
                when fusion = 'rrf'
                then coalesce(one / (rrf_k + case when s.cosine is null then s.lexical_place else s.dense_place end), zero)
                when s.cosine is null then case when b.points > 0 then s.points / b.points else zero end
                when b.shifted > 0 then (s.cosine + scale) / b.shifted
                else zero
            end as dense_term,
            s.cosine is null and b.lexical_share < one as imputed
        from scored s
        cross join best b
    ),
    ranked as materialized (
        select f.*, row_number() over (order by f.lexical_term + f.dense_term desc, f.chunk_id) as place
        from fused f
    ),
    -- of chunks of one document that say the same, the best stands for the others
    near as materialized (
        select t.chunk_id, t.place, min(f.place) as like_place
        from ranked t
        join ranked f on f.chunk_id >> 20 = t.chunk_id >> 20 and f.place < t.place
        where t.vector operator(public.<=>) f.vector < same
        group by t.chunk_id, t.place
    ),
    -- which may itself be like a better one
    twin as materialized (
        select t.chunk_id, coalesce(f.like_place, t.like_place) as like_place
        from near t
        left join near f on f.place = t.like_place
    ),
    single as (
        select r.*, row_number() over (partition by r.chunk_id >> 20 order by r.place) as of_document
        from ranked r
        where not exists (select from twin t where t.chunk_id = r.chunk_id)
    ),
    top as materialized (
        select s.*
        from single s
        where per_document is null or s.of_document <= per_document
        order by s.place
        limit wanted
    ),
    matched as (
        select
            o.chunk_id,
            jsonb_agg(
                jsonb_build_object('term', a.term, 'frequency', o.frequency, 'idf', round(a.idf * scale) / scale)
                order by a.term
            ) as of_query
        from unnest(query_terms, idfs) as a (term, idf)
        cross join lateral rag.occurrences_v1(
            tenant, audiences, a.term, array(select t.chunk_id from top t order by t.chunk_id), title_weight
        ) o
        group by o.chunk_id
    ),
    twins as (
        select t.like_place, jsonb_agg(jsonb_build_object('chunk', c.number, 'start', c.start_char, 'end', c.end_char) order by c.number) as spans
        from twin t
        join top h on h.place = t.like_place
        cross join lateral (
            select c.number, c.start_char, c.end_char
            from rag.chunk c
            where c.tenant_id = tenant and c.chunk_id = t.chunk_id
            offset 0
        ) c
        group by t.like_place
    )
    select
        (
            select jsonb_agg(
                jsonb_build_object('term', a.term, 'df', a.df, 'idf', round(a.idf * scale) / scale) order by a.df, a.term
            )
            from unnest(query_terms, dfs, idfs) as a (term, df, idf)
        ),
        jsonb_agg(
            jsonb_build_object(
                'document_id', c.document_id, 'source', d.source, 'title', d.title, 'version', d.version,
                'chunk', c.number, 'heading', c.heading, 'start', c.start_char, 'end', c.end_char, 'text', c.text,
                'score', t.lexical_term + t.dense_term,
                'bm25_rank', t.lexical_place, 'bm25_score', t.points / scale, 'bm25_part', t.lexical_term,
                'vector_rank', t.dense_place, 'vector_score', t.cosine / scale, 'vector_part', t.dense_term,
                'vector_imputed', t.imputed,
                'terms', coalesce(m.of_query, '[]'),
                'duplicates', coalesce(w.spans, '[]')
            )
            order by t.place
        )
    into found_terms, found_hits
    from top t
    cross join lateral (
        select c.document_id, c.number, c.heading, c.start_char, c.end_char, c.text
        from rag.chunk c
        where c.tenant_id = tenant and c.chunk_id = t.chunk_id
        offset 0
    ) c
    cross join lateral (
        select d.source, d.title, d.version
        from rag.document d
        where d.tenant_id = tenant and d.document_id = c.document_id
        offset 0
    ) d
    left join matched m on m.chunk_id = t.chunk_id
    left join twins w on w.like_place = t.place;

    if pruned and coalesce(jsonb_array_length(found_hits), 0) < wanted then
        -- the chunks of the rarer words were few, or not the filter's
        return query select s.*
        from rag.search_v2(
            context, query, phrases, phrase_words, query_vector, vector_model, wanted, candidates, lexical_weight, dense_weight,
            fusion, document_filter, per_document, posting_budget => 9223372036854775807
        ) s;
        return;
    end if;
    return query select
        corpus_version,
        rag.search_state_v1(settings, audiences),
        jsonb_build_object(
            'lexical_plan', case when query_terms is null then 'off' when pruned then 'pruned' else 'full' end,
            'dense_plan', dense_plan,
            'terms', coalesce(found_terms, '[]'),
            'expanded', expanded,
            'chunks', reachable,
            'filter_ms', round(extract(epoch from filtered_at - began) * 1000, 3),
            'dense_ms', round(extract(epoch from dense_at - filtered_at) * 1000, 3),
            'rank_ms', round(extract(epoch from clock_timestamp() - dense_at) * 1000, 3)
        ),
        coalesce(found_hits, '[]');
end
$$;

grant execute on function
    rag.search_v2(
        text, text, text[], text, public.halfvec, smallint, integer, integer, double precision, double precision, text, jsonpath,
        integer, bigint
    )
to bulkhead_app;

-- The same for itself, in one round trip: to look a kept result up, and to wait for a write and its vectors.
create function rag.corpus_state_v1(context text, written bigint)
returns table (version bigint, state jsonb, behind boolean)
language plpgsql stable security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.open_context_v1(context);
begin
    return query
    select rag.corpus_version_v1(), rag.search_state_v1(t, rag.current_audiences()), queue.embeddings_behind_v1(written)
    from rag.tenant t
    where t.tenant_id = tenant;
end
$$;
grant execute on function rag.corpus_state_v1(text, bigint) to bulkhead_app;

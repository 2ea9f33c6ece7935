-- search
-- Hybrid search in one call that opens the sealed context itself (sql/migrations/0009_search.sql).
select r.version, r.state, r.report, r.hits
from rag.search_v2(
    {context}, {query}, {phrases}, {phrase_words}, {query_vector}, {model_id}::smallint, {wanted}, {candidates},
    {lexical_weight}, {dense_weight}, {fusion}, {filter}::text::jsonpath, {per_document}
) r;

-- corpus_state
-- The corpus version, what else a result depends on, and whether vectors of a write up to `min_version` are being made.
select s.version, s.state, s.behind
from rag.corpus_state_v1({context}, {min_version}) s;

-- likeness
-- What stands for a document in a search for others like it, or for one chunk of it: the mean of its vectors, and words
-- of its own for as long as it has none. A vector of zeros points nowhere: as if there were none.
select
    d.chunks, d.title, m.model_id, v.embedded,
    case when public.l2_norm(v.mean) > 0 then v.mean end as vector,
    case
        when {chunk}::bigint is null then left(d.text, {words}::integer)
        else (
            select c.text
            from rag.chunk c
            where c.tenant_id = {tenant_id} and c.chunk_id = d.ordinal << 20 | {chunk}::bigint
        )
    end as text
from rag.document d
join rag.tenant t on t.tenant_id = d.tenant_id
cross join lateral (select coalesce(t.model_id, {default_model}::smallint) as model_id) m
cross join lateral (
    select count(*) as embedded, public.avg(e.vector) as mean
    from rag.embedding e
    where e.tenant_id = {tenant_id}
        and e.model_id = m.model_id
        and e.chunk_id >= d.ordinal << 20 | coalesce({chunk}::bigint, 0)
        and e.chunk_id <= d.ordinal << 20 | coalesce({chunk}::bigint, 1048575)
) v
where d.tenant_id = {tenant_id} and d.document_id = {document_id};

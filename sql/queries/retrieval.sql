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

-- search
-- Hybrid search in one call that opens the sealed context itself (sql/migrations/0005_search.sql).
select *
from rag.search_v1(
    {context}, {query}, {query_vector}, {model_id}::smallint, {wanted}, {lexical_weight}, {dense_weight}, {candidates}
);

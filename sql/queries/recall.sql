-- recall_at_10
-- How many of the ten nearest chunks the tenant's graph finds, in a call that opens the sealed context itself.
select r.recall, r.chunks
from rag.recall_at_10_v1({context}, {vector}, {model_id}::smallint) r;

-- claim_ended
-- Leases tasks that have ended and are due to be compacted or taken away, each with a seal for it alone.
select c.task_id, c.expired, c.attempts, c.seal
from queue.claim_ended_v1({wanted}, {lease_s}, {settle_s}) c;

-- compact_task
-- One step of a compaction; says whether there is more.
select rag.compact_task_v1({task_id}, {budget});

-- delete_task
-- One step of a deletion; says whether there is more.
select rag.delete_task_v1({task_id}, {budget});

-- finish_ended
-- Ends a lease: the task is compacted, or gone.
select queue.finish_ended_v1({task_id}, {gone});

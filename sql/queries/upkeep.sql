-- claim_upkeep
-- Leases tenants whose index is due for compaction, each with a seal for its tenant.
select c.lease, c.attempts, c.seal
from queue.claim_upkeep_v1({wanted}, {lease_s}, {settle_s}, {backlog}) c;

-- compact
-- One step of a compaction; says whether there is more, and when a sweep falls due by itself.
select c.more, case when c.more then clock_timestamp() else c.sweep_at end as next_at
from rag.compact_v1({lease}, {lease_s}, {budget}, {sweep_budget}, {sweep_share}, {sweep_after_s}) c;

-- finish_upkeep
-- Ends a lease; the tenant comes again at the time given, or with its next write.
select queue.finish_upkeep_v1({lease}, {next_at});

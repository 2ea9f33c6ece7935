-- append
-- Appends entries to the chain of the caller's tenant; the context comes first, those of other callers of it follow.
select rag.append_audit_v1(array[{context}::text] || {others}::text[], {entries}::jsonb, {durable}) as seq;

-- chains
-- The end of every chain, by its own account and by what there is, in one snapshot; a chain can lack either, and a tenant's
-- both: it must not go unmentioned, since it may have been deleted.
select coalesce(t.tenant_id, h.tenant_id, a.tenant_id) as tenant_id, t.name, h.seq as head_seq, h.hash as head_hash, a.seq as last_seq
from rag.audit_head h
full join (
    with recursive chain as (
        -- one look per tenant, however many rows it has
        (select x.tenant_id, x.seq from rag.audit x order by x.tenant_id desc, x.seq desc limit 1)
        union all
        select n.tenant_id, n.seq
        from chain c
        cross join lateral (
            select x.tenant_id, x.seq
            from rag.audit x
            where x.tenant_id < c.tenant_id
            order by x.tenant_id desc, x.seq desc
            limit 1
        ) n
    )
    select tenant_id, seq from chain
) a on a.tenant_id = h.tenant_id
full join rag.tenant t on t.tenant_id = coalesce(h.tenant_id, a.tenant_id)
where {tenant_id}::uuid is null or coalesce(t.tenant_id, h.tenant_id, a.tenant_id) = {tenant_id}
order by t.name, 1;

-- page
-- Rows of a chain in its order, from the one after `after` on.
select a.*
from rag.audit a
where a.tenant_id = {tenant_id} and a.seq > {after}
order by a.seq
limit {wanted};

-- tail
-- The last rows of a chain, in its order.
select l.*
from (
    select a.* from rag.audit a where a.tenant_id = {tenant_id} order by a.seq desc limit {wanted}
) l
order by l.seq;

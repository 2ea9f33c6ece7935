-- A task that is asked for twice is accepted once: a caller's own key for what it wants done, unique among its keys. Whoever
-- lost an answer sends the same again and is told of the task that there is.
alter table rag.task
    add column idempotency_key text,
    add constraint task_key_length check (length(idempotency_key) between 1 and 128);
create unique index task_by_key on rag.task (tenant_id, subject, idempotency_key) where idempotency_key is not null;
-- what a caller has started, by state: its own account of itself
create index task_by_subject on rag.task (tenant_id, subject, state, created_at);

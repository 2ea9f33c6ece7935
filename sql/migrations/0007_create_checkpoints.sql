-- The tables of LangGraph's AsyncPostgresSaver (langgraph-checkpoint-postgres 3.2, its MIGRATIONS 0-9), created here and
-- never by the library, with the tenant added (a2a.md 3). A test compares the columns with the library's own DDL.
-- The library's keys are its own; thread_id is the task's id, which is random and unique over all tenants.

create schema checkpoint;
revoke all on schema checkpoint from public;
grant usage on schema checkpoint to bulkhead_app;

create table checkpoint.checkpoints (
    tenant_id uuid not null default rag.current_tenant() references rag.tenant,
    thread_id text not null,
    checkpoint_ns text not null default '',
    checkpoint_id text not null,
    parent_checkpoint_id text,
    type text,
    checkpoint jsonb not null,
    metadata jsonb not null default '{}',
    primary key (thread_id, checkpoint_ns, checkpoint_id)
);

create table checkpoint.checkpoint_blobs (
    tenant_id uuid not null default rag.current_tenant() references rag.tenant,
    thread_id text not null,
    checkpoint_ns text not null default '',
    channel text not null,
    version text not null,
    type text not null,
    blob bytea,
    primary key (thread_id, checkpoint_ns, channel, version)
);

create table checkpoint.checkpoint_writes (
    tenant_id uuid not null default rag.current_tenant() references rag.tenant,
    thread_id text not null,
    checkpoint_ns text not null default '',
    checkpoint_id text not null,
    task_id text not null,
    idx integer not null,
    channel text not null,
    type text,
    blob bytea not null,
    task_path text not null default '',
    primary key (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);

call rag.isolate('checkpoint.checkpoints');
call rag.isolate('checkpoint.checkpoint_blobs');
call rag.isolate('checkpoint.checkpoint_writes');
grant select, insert, update, delete on
    checkpoint.checkpoints, checkpoint.checkpoint_blobs, checkpoint.checkpoint_writes
to bulkhead_app;

-- MCP servers outside of this installation that a tenant's runs may ask (docs/external-servers.md). Operators keep the list;
-- the worker reads it as the tenant; the faces have no business with it and no grant.

create table rag.external_server (
    tenant_id uuid not null,
    server_id uuid not null default gen_random_uuid(),
    name text not null,
    url text not null,
    tools text[] not null,                  -- what may be called there; whatever is not named may not
    header text,                            -- which header takes the credential; null: the server asks for none
    credential bytea,                       -- closed (rag/identity/secretbox.py), for this tenant, server and URL only
    sends_queries boolean not null default false,  -- whether words of the tenant's may go there
    enabled boolean not null default true,
    created_at timestamptz not null default clock_timestamp(),
    changed_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, server_id),
    constraint external_server_tenant foreign key (tenant_id) references rag.tenant,
    constraint external_server_name_unique unique (tenant_id, name),
    constraint external_server_name_form check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    constraint external_server_url_length check (length(url) between 1 and 2048),
    constraint external_server_tools check (
        cardinality(tools) between 1 and 32
        and array_position(tools, null) is null
        and length(array_to_string(tools, '')) <= 32 * 128
    ),
    constraint external_server_header check (header ~ '^[a-z][a-z0-9-]{0,63}$'),
    constraint external_server_credential check (header is not null or credential is null)
);

call rag.isolate('rag.external_server');
grant select on rag.external_server to bulkhead_worker;
create policy operated on rag.external_server to bulkhead_maintenance using (true) with check (true);
grant select, insert, update, delete on rag.external_server to bulkhead_maintenance;

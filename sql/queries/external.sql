-- list_external_servers
-- The enabled servers of the sealed tenant, by name.
select server_id, name, url, tools, header, credential, sends_queries, enabled
from rag.external_server
where tenant_id = (select rag.current_tenant()) and enabled
order by name;

-- list_servers_of_tenant
-- All servers of a tenant, by name, for an operator.
select server_id, name, url, tools, header, credential, sends_queries, enabled
from rag.external_server
where tenant_id = {tenant_id}
order by name;

-- find_server_of_tenant
-- One server of a tenant, for an operator.
select server_id, name, url, tools, header, credential, sends_queries, enabled
from rag.external_server
where tenant_id = {tenant_id} and name = {name};

-- add_server
-- A new server; its name is unique in the tenant.
insert into rag.external_server (tenant_id, server_id, name, url, tools, header, credential, sends_queries)
values ({tenant_id}, {server_id}, {name}, {url}, {tools}, {header}, {credential}, {sends_queries})
returning server_id;

-- set_server_credential
-- The credential of a server; null takes it away.
update rag.external_server
set header = {header}, credential = {credential}, changed_at = clock_timestamp()
where tenant_id = {tenant_id} and server_id = {server_id}
returning server_id;

-- set_server
-- What a server may be asked for; null leaves it as it is.
update rag.external_server
set tools = coalesce({tools}, tools),
    sends_queries = coalesce({sends_queries}, sends_queries),
    enabled = coalesce({enabled}, enabled),
    changed_at = clock_timestamp()
where tenant_id = {tenant_id} and name = {name}
returning server_id;

-- remove_server
-- Forget a server and its credential.
delete from rag.external_server where tenant_id = {tenant_id} and name = {name} returning server_id;

-- The five roles (docs/adr/0002-roles.md). Run once per cluster by an administrator; safe to run again.
-- Passwords are set apart from this file, as SCRAM verifiers, so that no statement carries one.
do $$
begin
    -- owns the schema; used by `bulkhead migrate` and nothing else
    if not exists (select from pg_catalog.pg_roles where rolname = 'bulkhead_owner') then
        create role bulkhead_owner login nosuperuser nocreatedb nocreaterole nobypassrls noreplication;
    end if;
    -- what the servers log in as: row-level security is forced on it, it owns nothing
    if not exists (select from pg_catalog.pg_roles where rolname = 'bulkhead_app') then
        create role bulkhead_app login nosuperuser nocreatedb nocreaterole nobypassrls noreplication noinherit;
    end if;
    -- what the worker logs in as: as the servers, and it may claim work of any tenant, with a seal for it
    if not exists (select from pg_catalog.pg_roles where rolname = 'bulkhead_worker') then
        create role bulkhead_worker login nosuperuser nocreatedb nocreaterole nobypassrls noreplication;
    end if;
    -- operators: tenants and revocation directly, upkeep of indexes through `set role bulkhead_owner`
    if not exists (select from pg_catalog.pg_roles where rolname = 'bulkhead_maintenance') then
        create role bulkhead_maintenance login nosuperuser nocreatedb nocreaterole nobypassrls noreplication;
    end if;
    -- owns the queues and the only functions that look across tenants; nobody can log in as it
    if not exists (select from pg_catalog.pg_roles where rolname = 'bulkhead_queue') then
        create role bulkhead_queue nologin nosuperuser nocreatedb nocreaterole nobypassrls noreplication noinherit;
    end if;
end
$$;

grant bulkhead_app to bulkhead_worker with inherit true, set false;
grant bulkhead_owner to bulkhead_maintenance with inherit false, set true;
grant bulkhead_queue to bulkhead_owner with inherit false, set true;

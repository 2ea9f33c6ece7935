-- What an administrator prepares in the database itself; safe to run again. Needs the roles of roles.sql.
do $$
begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect, create on database %I to bulkhead_owner', current_database());
    execute format('grant connect on database %I to bulkhead_app, bulkhead_maintenance', current_database());
end
$$;

-- One login serves all tenants, and these built-in functions see no row-level security: with them one injected statement
-- could end, or wait in the way of, sessions that work for others, or leave large objects that everybody reads. And no
-- server needs DO blocks. (An administrator who is no superuser is told that nothing was revoked: see SECURITY.md.)
do $$
declare
    door regprocedure;
begin
    for door in
        select p.oid::regprocedure
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pg_catalog'::regnamespace
            and p.proname ~ '^(pg_(cancel|terminate)_backend|pg_(try_)?advisory_(xact_)?lock(_shared)?|lo_(creat|create|from_bytea))$'
    loop
        execute format('revoke execute on function %s from public', door);
        execute format('grant execute on function %s to bulkhead_owner', door);
    end loop;
end
$$;
revoke usage on language plpgsql from public;
grant usage on language plpgsql to bulkhead_owner;

revoke all on schema public from public;
grant usage on schema public to bulkhead_owner, bulkhead_app, bulkhead_maintenance, bulkhead_queue;
create extension if not exists vector schema public;

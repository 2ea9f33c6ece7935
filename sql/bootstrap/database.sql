-- What an administrator prepares in the database itself; safe to run again. Needs the roles of roles.sql.
do $$
begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect, create on database %I to bulkhead_owner', current_database());
    execute format('grant connect on database %I to bulkhead_app, bulkhead_maintenance', current_database());
end
$$;

revoke all on schema public from public;
grant usage on schema public to bulkhead_owner, bulkhead_app, bulkhead_maintenance, bulkhead_queue;
create extension if not exists vector schema public;

-- excessive_powers
-- What this login may do that a server must not be able to; no rows when it is harmless.
select power
from (
    select format('role attribute %s', a.name) as power
    from pg_catalog.pg_roles r
    cross join lateral (
        values
            ('superuser', r.rolsuper),
            ('bypassrls', r.rolbypassrls),
            ('createrole', r.rolcreaterole),
            ('createdb', r.rolcreatedb),
            ('replication', r.rolreplication)
    ) as a (name, held)
    where r.rolname = current_user and a.held
    union all
    select format('member of %s', m.roleid::regrole)
    from pg_catalog.pg_auth_members m
    where m.member = (select oid from pg_catalog.pg_roles where rolname = current_user)
    union all
    select format('owns %s', c.oid::regclass)
    from pg_catalog.pg_class c
    where c.relkind in ('r', 'p', 'v', 'm')
        and c.relowner = (select oid from pg_catalog.pg_roles where rolname = current_user)
    union all
    select format('%s on %s', p.privilege, c.oid::regclass)
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    cross join (values ('truncate'), ('references'), ('trigger'), ('maintain')) as p (privilege)
    where n.nspname in ('rag', 'seal', 'queue', 'checkpoint')
        and c.relkind in ('r', 'p')
        and has_table_privilege(c.oid, p.privilege)
    union all
    select format('create in schema %s', n.nspname)
    from pg_catalog.pg_namespace n
    where has_schema_privilege(n.oid, 'create')
    union all
    select format('%s in database %s', p.privilege, current_database())
    from (values ('create'), ('temp')) as p (privilege)
    where has_database_privilege(current_database(), p.privilege)
    union all
    select format('reads %s', c.oid::regclass)
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('seal', 'queue')
        and c.relkind in ('r', 'p')
        and has_table_privilege(c.oid, 'select, insert, update, delete')
) as found
order by power;

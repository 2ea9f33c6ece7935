-- excessive_powers
-- What this login may do that a server must not be able to, and where the wall before it stands open; no rows when it is
-- harmless.
with login as (
    select r.* from pg_catalog.pg_roles r where r.rolname = current_user
),
relation as (
    select c.*, n.nspname
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('rag', 'seal', 'queue', 'checkpoint')
        and c.relkind in ('r', 'p', 'v', 'm', 'f')
)
select distinct power
from (
    -- `set role none` would undo what a URL or a role's settings have put on
    select format('logged in as %s', session_user) as power
    where session_user <> current_user
    union all
    select format('role attribute %s', a.name)
    from login r
    cross join lateral (
        values
            ('superuser', r.rolsuper),
            ('bypassrls', r.rolbypassrls),
            ('createrole', r.rolcreaterole),
            ('createdb', r.rolcreatedb),
            ('replication', r.rolreplication)
    ) as a (name, held)
    where a.held
    union all
    -- the worker is what a server is, and may claim
    select format('member of %s', m.roleid::regrole)
    from pg_catalog.pg_auth_members m
    where m.member = (select oid from login) and not ({claims}::boolean and m.roleid::regrole::text = 'bulkhead_app')
    union all
    select format('owns %s', i.identity)
    from pg_catalog.pg_shdepend d
    cross join lateral pg_identify_object(d.classid, d.objid, d.objsubid) i
    where d.refclassid = 'pg_catalog.pg_authid'::regclass
        and d.refobjid = (select oid from login)
        and d.deptype = 'o'
        and d.dbid in (0, (select oid from pg_catalog.pg_database where datname = current_database()))
    union all
    select format('%s on %s', p.privilege, c.oid::regclass)
    from relation c
    cross join (values ('truncate'), ('references'), ('trigger'), ('maintain')) as p (privilege)
    where c.relkind in ('r', 'p')
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
    select format('executes %s', p.oid::regprocedure)
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where (
            n.nspname = 'seal'
            or not {claims}::boolean
            and (
                n.nspname = 'queue' and p.proname ~ '^(claim|sweep)_'
                -- whoever calls models, and nobody else, has the ledger changed
                or n.nspname = 'rag' and p.proname ~ '^(hold|start|settle|release|sweep)_charges?_'
            )
        )
        and has_function_privilege(p.oid, 'execute')
    union all
    -- a view has no row-level security of its own, and its owner's powers
    select format('reads %s past row-level security', c.oid::regclass)
    from relation c
    where (c.nspname in ('seal', 'queue') or not (c.relrowsecurity and c.relforcerowsecurity))
        and (
            has_any_column_privilege(c.oid, 'insert, update')
            or has_table_privilege(c.oid, 'delete')
            or has_any_column_privilege(c.oid, 'select') and not (
                c.nspname = 'rag'
                and (
                    c.relname in ('embedding_model', 'tier', 'tier_budget')
                    -- the worker routes model calls, and the catalogue of models is no tenant's
                    or {claims}::boolean
                    and c.relname in ('llm_endpoint', 'llm_model', 'llm_offer', 'llm_price', 'routing_rule')
                )
            )
        )
    union all
    select format('passes policy %s on %s', p.polname, c.oid::regclass)
    from pg_catalog.pg_policy p
    join relation c on c.oid = p.polrelid
    cross join lateral (
        values (pg_get_expr(p.polqual, p.polrelid)), (pg_get_expr(p.polwithcheck, p.polrelid))
    ) as e (wall)
    where p.polpermissive
        -- for whom each model is: read by the worker for all tenants together
        and not ({claims}::boolean and c.oid = 'rag.llm_model_tenant'::regclass and p.polname = 'routed')
        and exists (select from unnest(p.polroles) as r (oid) where r.oid = 0 or pg_has_role(r.oid, 'usage'))
        and regexp_replace(coalesce(e.wall, ''), '\s', '', 'g') not in (
            '(tenant_id=(SELECTrag.current_tenant()AScurrent_tenant))',
            '((tenant_id=(SELECTrag.current_tenant()AScurrent_tenant))'
                'AND(audience=ANY((SELECTrag.current_audiences()AScurrent_audiences)::bigint[])))'
        )
) as found
order by power;

-- may_claim
-- Whether this login may claim runs and documents of any tenant.
select coalesce(bool_and(has_function_privilege(p.oid, 'execute')), false)
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'queue' and p.proname ~ '^claim_';

-- ping
-- Whether the database answers at all.
select 1;

-- maintained
-- Whether a session holds the lock of the one that looks after the vector indexes (vector_indexes.sql, lead).
select exists (
    select from pg_catalog.pg_locks
    where locktype = 'advisory'
        and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
        and classid = 0
        and objid = 7102211
        and objsubid = 1
        and granted
);

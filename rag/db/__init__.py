"""The only importer of the PostgreSQL driver: pool, tenant session, migrations, fault translation."""

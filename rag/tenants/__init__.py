"""Tenants as the operator sees them: create, list, revoke."""

"""Hybrid search over a tenant's chunks."""

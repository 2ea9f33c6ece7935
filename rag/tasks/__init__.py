"""Durable tasks and their append-only event log."""

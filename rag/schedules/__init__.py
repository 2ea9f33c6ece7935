"""Recurring tasks: standing orders of one subject, and when they come due."""

"""Webhooks of tasks: who is told, in what order, how often it is tried, and what is given up."""

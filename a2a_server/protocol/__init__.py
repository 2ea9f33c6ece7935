"""A2A 1.0 as pure functions between domain values and wire messages: no loop, no socket, no database."""

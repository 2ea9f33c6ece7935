"""Clients of our own two faces, for the CLI and for graph nodes; nothing else below the faces speaks MCP or A2A."""

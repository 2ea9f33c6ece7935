"""MCP servers outside of this installation that a tenant's runs may ask: the list, and the client for what is on it."""

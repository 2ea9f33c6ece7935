"""The MCP face: AI clients search and read a tenant's documents. Stands on rag; never imports a2a_server."""

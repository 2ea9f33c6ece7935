"""What both faces serve. Knows no HTTP server, no MCP, no A2A and no LangGraph."""

"""The official MCP conformance suite against the product, with the fixtures that its scenarios name."""

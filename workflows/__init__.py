"""LangGraph graphs, their registry and the durable worker. Above rag, below both faces."""

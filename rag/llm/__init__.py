"""Models behind ports: embedders, chat servers, the extractive answerer."""

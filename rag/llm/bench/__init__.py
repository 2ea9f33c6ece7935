"""What `bulkhead bench llm` measures of a model server: `prompts` asks, `measure` times, `figures` sums up."""

"""A real vLLM on the CPU, and what of it the rest of the project rests on (`make test-vllm`)."""

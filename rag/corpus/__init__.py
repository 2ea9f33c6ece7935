"""A tenant's documents: parsed, chunked, stored, embedded."""

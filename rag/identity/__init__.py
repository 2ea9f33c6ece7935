"""Who is calling: principals, tokens, keys, seals. Below every domain package, above the ground."""

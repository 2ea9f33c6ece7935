"""One reader per file format that needs a library: bytes in, a `rag.corpus.text.Draft` out.

Above it: `rag.corpus.parse`, which imports a reader when the first file of its format comes. No reader touches the
network, follows a link or resolves an external entity, and each refuses what it cannot read in a sentence.
"""

"""Measuring retrieval: collections with judgements in, quality and latency of the real search out."""

"""`python -m rag.cli` is `bulkhead`."""

from __future__ import annotations

from rag.cli import main

main()

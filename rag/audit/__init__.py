"""Who did what with which documents, as a chain of rows per tenant that only grows (docs/audit.md).

Above: the faces, through `rag.runtime`, and the operator's verbs. Below: `rag.db`, `rag.identity`.
"""

from __future__ import annotations

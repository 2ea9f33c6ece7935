"""What may be spent on models, by whom, and a ledger of it that cannot be oversold (docs/budgets.md).

Above: `rag.runtime`, the faces' usage and the operator's verbs. Below: `rag.db`, and the port in `rag.llm.ledger`.
"""

from __future__ import annotations

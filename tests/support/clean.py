"""`make clean`: stop the embedded PostgreSQL of each data directory named, and delete its data wherever it was put."""

from __future__ import annotations

import sys
from pathlib import Path

from rag.cli.common import reporting_errors
from rag.db.embedded import remove_embedded_postgres

if __name__ == "__main__":
    with reporting_errors():
        for name in sys.argv[1:]:
            remove_embedded_postgres(Path(name))

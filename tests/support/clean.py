"""`make clean`: stop the embedded PostgreSQL of each data directory named, and delete its data wherever it was put.

And that of the tests, where it lies in memory.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rag.cli.common import reporting_errors
from rag.db.embedded import remove_embedded_postgres
from tests.support.world import memory_root

if __name__ == "__main__":
    with reporting_errors():
        for path in (*map(Path, sys.argv[1:]), memory_root()):
            remove_embedded_postgres(path)
        shutil.rmtree(memory_root(), ignore_errors=True)

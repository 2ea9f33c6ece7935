"""The tenant that an evaluation works in: made once for a collection, found empty, left empty.

Above: the command line. Below: `rag.tenants` and a lock file. A tenant cannot be deleted, so that one is used again;
two evaluations of one collection at a time get one each.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from rag.errors import Conflict, NotFound
from rag.tenants.operator import Operator, Tenant

__all__ = ["MAX_SCRATCH", "scratch_name", "scratch_tenant"]

MAX_SCRATCH = 8
"""Evaluations of one collection at a time on one installation."""
_LONGEST_NAME = 50
"""Of the collection's part: a tenant's name has at most 63 characters."""


def scratch_name(collection: str, number: int) -> str:
    """Return the name of the collection's `number`-th scratch tenant."""
    words = re.sub(r"[^a-z0-9]+", "-", collection.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return f"eval-{words or 'collection'}-{number}"


@asynccontextmanager
async def scratch_tenant(operator: Operator, collection: str, *, locks: Path) -> AsyncGenerator[Tenant]:
    """Yield a tenant that no other evaluation of this installation uses until the block ends.

    Args:
        operator: Finds or makes it.
        collection: The collection's name.
        locks: An existing folder for the lock files, shared by all evaluations of the installation. A lock goes with
            its process, however that ends.

    Raises:
        Conflict: MAX_SCRATCH evaluations of this collection are running.
    """
    for number in range(1, MAX_SCRATCH + 1):
        name = scratch_name(collection, number)
        descriptor = os.open(locks / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield await _find_or_make(operator, name)
            return
        finally:
            os.close(descriptor)
    raise Conflict(f"{MAX_SCRATCH} evaluations of {collection} are running here; wait for one to end")


async def _find_or_make(operator: Operator, name: str) -> Tenant:
    try:
        return await operator.find_tenant(name)
    except NotFound:
        return await operator.create_tenant(name)

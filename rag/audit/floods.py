"""Refusals of one kind, counted instead of written: who floods a server must not fill the audit trail with it.

Above: `log`. The first of a kind is written at once; those that follow are one entry, with their number, every so many
seconds.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from uuid import UUID

from rag.audit.values import Entry
from rag.identity.principal import Principal

__all__ = ["Floods"]

MAX_KINDS = 10_000
"""A kind too many pushes the oldest out, which is written at once."""
Kind = tuple[UUID, str, str, str, str]
Refusal = tuple[Principal, Entry]


@dataclasses.dataclass(slots=True, kw_only=True)
class _Flood:
    principal: Principal
    entry: Entry
    since_s: float
    more: int = 0


class Floods:
    """Which kinds are coming in, oldest first; `now_s` is any clock that only goes forward, in seconds."""

    def __init__(self, *, every_s: float) -> None:
        """Let one entry of a kind out every `every_s` seconds."""
        self._every_s = every_s
        self._floods: OrderedDict[Kind, _Flood] = OrderedDict()

    def __len__(self) -> int:
        """Return how many kinds are being counted."""
        return len(self._floods)

    def take(self, principal: Principal, entry: Entry, now_s: float) -> list[Refusal]:
        """Count one refusal, and return what is to be written now."""
        kind = (principal.tenant_id, principal.subject, entry.method, entry.target, entry.outcome)
        known = self._floods.get(kind)
        if known is not None:
            known.more += 1
            known.principal = principal  # its seal can be made for longest
            return []
        # what was asked for may be long, and those that follow may ask for something else
        self._floods[kind] = _Flood(principal=principal, entry=dataclasses.replace(entry, query=None), since_s=now_s)
        out = [(principal, entry)]
        if len(self._floods) > MAX_KINDS:
            out += _counted(self._floods.popitem(last=False)[1])
        return out

    def due(self, now_s: float) -> list[Refusal]:
        """Return an entry for each kind that has come again since its last, and forget those that have not."""
        out: list[Refusal] = []
        while self._floods and next(iter(self._floods.values())).since_s + self._every_s <= now_s:
            kind, flood = self._floods.popitem(last=False)
            if flood.more:
                out += _counted(flood)
                self._floods[kind] = dataclasses.replace(flood, since_s=now_s, more=0)
        return out

    def rest(self) -> list[Refusal]:
        """Return what was counted and not yet let out, and forget everything."""
        out = [refusal for flood in self._floods.values() for refusal in _counted(flood)]
        self._floods.clear()
        return out


def _counted(flood: _Flood) -> list[Refusal]:
    if not flood.more:
        return []
    return [(flood.principal, dataclasses.replace(flood.entry, repeats=flood.more, trace_id=None))]

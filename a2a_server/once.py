"""What many want of one object, made once: an event of a task's log goes to all who follow it as the same bytes.

Above: `handler`, `web`. Below: nothing. Objects are told apart by identity: those of `rag.tasks.feed`, which gives the
same ones to all readers under one token, and nobody changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

__all__ = ["Once"]

T = TypeVar("T")
V = TypeVar("V")
P = ParamSpec("P")
KEPT = 256
"""A subscriber that is further behind the others has it made again."""


class Once(Generic[T, P, V]):
    """A function of an object, with the values of the last KEPT objects."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[Concatenate[T, P], V]) -> None:
        """`make` is called for an object whose value is not here (any more)."""
        self._make = make
        self._made: OrderedDict[int, tuple[T, V]] = OrderedDict()

    def __call__(self, thing: T, *args: P.args, **kwargs: P.kwargs) -> V:
        """Return the value of `thing`; what else it is made of goes with `thing`, for whoever asks."""
        kept = self._made.get(id(thing))
        # an id is that of its object for as long as the object is kept here
        if kept is not None:
            return kept[1]
        value = self._make(thing, *args, **kwargs)
        self._made[id(thing)] = (thing, value)
        if len(self._made) > KEPT:
            self._made.popitem(last=False)
        return value

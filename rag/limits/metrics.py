"""What operators see of the limits: how many requests were refused, and whether Redis is away.

Above: `counts` and `limiter`. Below: the OpenTelemetry API; whoever sets up an exporter decides where it goes. No
attribute names a tenant or a user: how busy one is, is not for all who may look at a dashboard.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

__all__ = ["METRICS", "LimitMetrics", "RefusedBy"]


class RefusedBy(StrEnum):
    """Which limit a request met."""

    TENANT = "tenant"
    USER = "user"
    CONCURRENCY = "concurrency"


class LimitMetrics:
    """The instruments; one set in a process."""

    def __init__(self, meter: Meter) -> None:
        """Make the instruments of `meter`."""
        self._away = 0
        self._refusals = meter.create_counter(
            "bulkhead.limits.refusals", unit="{request}", description="Requests refused, by the limit that they met"
        )
        meter.create_observable_gauge(
            "bulkhead.limits.degraded",
            callbacks=[self._observe],
            description="1 while Redis does not answer and this process counts for its share",
        )

    def refused(self, by: RefusedBy) -> None:
        """Count a refused request."""
        self._refusals.add(1, {"scope": by.value})

    def lost(self) -> None:
        """Say that a limiter of this process has lost its Redis."""
        self._away += 1

    def recovered(self) -> None:
        """Say that it has it back, or is closed."""
        self._away -= 1

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(int(self._away > 0))


METRICS = LimitMetrics(get_meter("bulkhead.limits"))

"""The one door to chat models: a call is routed, held against its caller's budgets, given a place, made and settled.

Above: `answerer`. Below: `routing`, `ledger`, `fairness`, `breaker`, `counting`, `wire`; nothing of them knows another.

    route -> for each offer in order: count -> hold -> place -> breaker -> start -> call -> settle | release

What each failure does:

- Nothing was billed (`NotBilled`): the hold is released. Tried again at the same server where that may help, a few
  times, with jitter, within the server's retry budget; then the next offer.
- The server had the request and nobody knows how far it came (`MaybeBilled`): settled at the upper bound, marked
  estimated, and not made again there. The next offer, unless a reader has seen text.
- The caller went away, or the reader of the text failed: as that, and no next offer.
- The ledger does not answer: no call is made, and Unavailable says so. It never means that the budget is not looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

import anyio
import httpx
from opentelemetry import trace

from rag.errors import (
    BudgetExceeded,
    BulkheadError,
    Conflict,
    InvalidInput,
    PriceUnknown,
    RateLimited,
    Unavailable,
)
from rag.llm import wire
from rag.llm.breaker import BreakerOpen, Breakers, BreakerState
from rag.llm.catalogue import Catalogue, Endpoint, Offer
from rag.llm.chat import Served
from rag.llm.counting import TokenCounter, fits, likely_tokens, upper_bound
from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.fairness import FairQueue, Load
from rag.llm.ledger import Bill, Hold, Ledger, Payer, Settlement
from rag.llm.physical import Made, describe, most_of, physical_span
from rag.llm.ports import Emit
from rag.llm.request import ChatRequest, Limits, Reply, TokenUsage
from rag.llm.retries import RetryBudgets, RetryRules, retry_after_s
from rag.llm.routing import Features, Policy, Route, Rule, Why, choose, likely_cost, required_tier

__all__ = ["Asked", "Caller", "Gateway", "Known", "Meter", "Queues", "Written"]

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("bulkhead.llm")
MAX_OFFERS = 4
"""A caller waits no longer than this many servers take to fail."""
SETTLE_S = 15.0
"""What a call has cost is told to the ledger within this time, again and again if need be; else the sweep settles it at
its bound, once its hold has run out."""
SETTLE_AGAIN_S = 0.25
PLACE_S = 30.0
"""The longest wait for a place at a server."""


class Known(Protocol):
    """What routes a call; `rag.catalogue.store.Known` is one."""

    @property
    def catalogue(self) -> Catalogue:
        """The models."""
        ...

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What asks for which tier."""
        ...


@dataclass(slots=True)
class Meter:
    """What calls have cost so far, failed ones included."""

    cost: Decimal | None = None
    """In the installation's currency; None: nothing with a price was called."""

    def add(self, cost: Decimal) -> None:
        """Note the cost of one more call."""
        self.cost = (self.cost or Decimal(0)) + cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom calls are made for."""

    payer: Payer
    tier: str
    """Of the tenant: free, pro or enterprise."""
    cache_salt: str = field(repr=False)
    """Keeps the tenant's prompt prefixes apart in a model server's cache (tenancy: a salt per tenant)."""
    workflow: str = ""
    policy: Policy = field(default_factory=Policy)
    weight: float = 1.0
    """The tenant's share of a server that it has to wait for."""
    meter: Meter = field(default_factory=Meter)
    """Is told what each call made for this caller has cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One logical call."""

    key: str
    """Names it in the ledger; another one for each time that it is made."""
    step: str
    """What is asked of the model, as the routing rules call it."""
    question: str | None = field(default=None, repr=False)
    """The user's words, if they are known apart from the prompt."""
    passages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A text, and how it came about."""

    text: str
    usage: TokenUsage | None
    cut: bool
    """Whether the model was stopped by its token limit."""
    served: Served


class Queues:
    """A fair queue for each endpoint, made when it is first asked for."""

    def __init__(self, *, places: int) -> None:
        """Give each endpoint so many places in this process."""
        self._places = places
        self._queues: dict[str, FairQueue] = {}

    def at(self, endpoint: Endpoint) -> FairQueue:
        """Return the endpoint's queue."""
        found = self._queues.get(endpoint.name)
        if found is None:
            found = self._queues[endpoint.name] = FairQueue(places=self._places)
        return found

    def loads(self) -> Mapping[str, Load]:
        """Return how full each is, by the endpoint's name."""
        return {name: queue.load() for name, queue in self._queues.items()}


@dataclass(slots=True, kw_only=True)
class _Call:
    """A logical call on its way."""

    caller: Caller
    request: ChatRequest
    asked: Asked
    emit: Emit
    number: int = 0
    """Of physical calls that were held for, each of which has a row of its own."""
    started: int = 0
    spent: Decimal = Decimal(0)
    estimated: bool = False
    failures: list[BulkheadError] = field(default_factory=list[BulkheadError])
    busy: str | None = None
    """The model at one of whose servers too many calls of the tenant wait already."""


class _Next(Exception):
    """This offer does not serve the call; the next one may."""

    def __init__(self, why: BulkheadError) -> None:
        super().__init__(why.message)
        self.why = why


class Gateway:
    """Holds what calls share: breakers, queues, retry budgets. The HTTP client is its owner's to close."""

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        known: Callable[[], Awaitable[Known]],
        ledger: Ledger,
        queues: Queues,
        limits: Limits | None = None,
        breakers: Breakers | None = None,
        retries: RetryRules | None = None,
    ) -> None:
        """`known` returns the catalogue and the rules as they are now."""
        self._client = client
        self._known = known
        self._ledger = ledger
        self._queues = queues
        self._limits = limits or Limits()
        self._breakers = breakers or Breakers()
        self._retries = retries or RetryRules()
        self._retry_budgets = RetryBudgets(rules=self._retries)
        self._counter = TokenCounter(client)

    async def allowed(self, caller: Caller) -> tuple[Offer, ...]:
        """Return what the caller's tenant may use; nothing: it has no model.

        Raises:
            Unavailable: Nobody knows now.
        """
        known = await self._known()
        return known.catalogue.allowed(caller.payer.principal.tenant_id, caller.tier)

    def loads(self) -> Mapping[str, Load]:
        """Return how full the queue in front of each endpoint is."""
        return self._queues.loads()

    def breakers(self) -> tuple[BreakerState, ...]:
        """Return the breaker of each model at each endpoint that was called."""
        return self._breakers.state()

    async def write(self, caller: Caller, request: ChatRequest, asked: Asked, *, emit: Emit) -> Written:
        """Have a model write to a prompt, and await `emit` with each piece of its text as it comes.

        Raises:
            BudgetExceeded, PriceUnknown: Refused before anything was sent.
            RateLimited: Too many calls of the tenant wait already.
            InvalidInput: The prompt is too long for every model.
            Unavailable: No model that may answer could be reached, or one broke off; pieces may have been emitted.
        """
        route = await self._route(caller, request, asked)
        call = _Call(caller=caller, request=request, asked=asked, emit=emit)
        with _tracer.start_as_current_span(
            f"generate {asked.step}", record_exception=False, set_status_on_exception=False
        ) as span:
            span.set_attribute("bulkhead.llm.tier.required", route.required.name.lower())
            for offer in route.offers[:MAX_OFFERS]:
                if call.busy is not None and offer.model.name != call.busy:
                    continue  # who has too much under way is not sent on to a larger model
                try:
                    reply = await self._at(offer, call)
                except _Next as failed:
                    call.failures.append(failed.why)
                    call.busy = offer.model.name if isinstance(failed.why, RateLimited) else call.busy
                    continue
                written = Written(
                    text=reply.text, usage=reply.usage, cut=reply.finish == "length", served=_served(route, offer, call)
                )
                _describe(span, written.served)
                return written
            raise _refusal(route, call)

    async def _route(self, caller: Caller, request: ChatRequest, asked: Asked) -> Route:
        known = await self._known()
        features = Features(
            workflow=caller.workflow,
            step=asked.step,
            question=asked.question,
            prompt_chars=len(request.system) + len(request.user),
            passages=asked.passages,
            wants_schema=request.schema is not None,
        )
        required, reasons = required_tier(known.rules, features)
        likely = likely_tokens(request)
        return choose(
            known.catalogue.allowed(caller.payer.principal.tenant_id, caller.tier),
            required,
            policy=caller.policy,
            healthy=lambda _: True,  # looked at when its turn comes: what was passed over is a fallback then
            fits=lambda offer: fits(offer, likely, request.max_tokens),
            cost=lambda offer: likely_cost(offer, prompt=likely, completion=request.max_tokens),
            reasons=reasons,
        )

    async def _at(self, offer: Offer, call: _Call) -> Reply:
        """Have one server write, trying again only while nothing is billed.

        Raises:
            _Next: It does not.
            Unavailable: It broke off when a reader had seen text, or the ledger does not answer.
        """
        budget = self._retry_budgets.of(offer.endpoint.name)
        budget.called()
        attempt = 1
        while True:
            try:
                return await self._once(offer, call)
            except NotBilled as exc:
                wait_s = retry_after_s(exc, attempt=attempt, budget=budget, rules=self._retries)
                if wait_s is None:
                    raise _Next(Unavailable(f"{exc}; try again later")) from exc
                await anyio.sleep(wait_s)
                attempt += 1
            except MaybeBilled as exc:
                if exc.emitted:
                    raise Unavailable(f"{exc}, in the middle of its answer") from exc
                raise _Next(Unavailable(f"{exc}; try again later")) from exc
            except BreakerOpen as exc:
                raise _Next(Unavailable(f"{exc}; try again later")) from exc
            except (BudgetExceeded, PriceUnknown, RateLimited) as exc:
                raise _Next(exc) from exc

    async def _once(self, offer: Offer, call: _Call) -> Reply:
        """Make one physical call, with a hold and a row of its own."""
        caller, request = call.caller, call.request
        if not self._breakers.lets_in(offer.endpoint.name, offer.model.name):
            raise _Next(Unavailable("the model server failed repeatedly and is left alone for a while"))
        prompt = await self._counter.prompt_tokens(offer, request, cache_salt=caller.cache_salt)
        # a bound in bytes is for the money: by it hardly anything fits into a small model
        size = prompt if prompt < upper_bound(request) else likely_tokens(request)
        if not fits(offer, size, request.max_tokens):
            raise _Next(InvalidInput(f"the prompt is too long for {offer.model.name}"))
        upper = most_of(offer, prompt, request, self._limits)
        call.number += 1
        hold = await self._ledger.hold(caller.payer, _bill(offer, call, upper))
        made = Made(offer=offer, upper=upper)
        try:
            async with self._queues.at(offer.endpoint).place(
                caller.payer.principal.tenant_id,
                weight=caller.weight,
                cost=prompt,  # the queue is told what was used when that is known
                timeout_s=PLACE_S,
            ) as place:
                try:
                    return await self._make(call, hold, made)
                finally:
                    place.cost = made.tokens(prompt + request.max_tokens)
        finally:
            # whatever happened, and if the caller was cancelled too: nothing stays held that nobody uses
            await self._close(call, hold, made)

    async def _make(self, call: _Call, hold: Hold, made: Made) -> Reply:
        offer = made.offer
        with self._breakers.trial(offer.endpoint.name, offer.model.name) as trial:
            try:
                await self._ledger.start(hold)
            except Conflict as exc:
                raise Unavailable(exc.message) from exc
            made.sent_at = anyio.current_time()
            call.started += 1
            with physical_span(offer, call.request, number=call.number) as span:
                try:
                    reply = await wire.stream(
                        self._client,
                        offer,
                        call.request,
                        call.emit,
                        cache_salt=call.caller.cache_salt,
                        limits=self._limits,
                    )
                except (NotBilled, MaybeBilled) as exc:
                    made.failed(exc, trial)
                    span.set_attribute("error.type", type(exc).__name__)
                    span.set_status(trace.StatusCode.ERROR)
                    raise
                trial.succeeded()
                made.usage, made.seconds = reply.usage, reply.total_s
                describe(span, reply)
                return reply

    async def _close(self, call: _Call, hold: Hold, made: Made) -> None:
        """Settle what was sent, and release what was not."""
        settlement = None if made.sent_at is None or made.free else made.settlement()
        if settlement is not None:
            call.spent += settlement.cost
            call.estimated = call.estimated or settlement.estimated
            if made.offer.price is not None:
                call.caller.meter.add(settlement.cost)
        told = False
        with anyio.move_on_after(SETTLE_S, shield=True):
            told = await self._tell(hold, settlement)
        if not told:
            # The answer stands. What the sweep finds started and left, it settles at the upper bound.
            call.estimated = call.estimated or settlement is not None
            _log.warning("a model call could not be settled; it is once its hold has run out")

    async def _tell(self, hold: Hold, settlement: Settlement | None) -> bool:
        """Tell the ledger, until it has heard it or refuses; False: it refuses."""
        while True:
            try:
                if settlement is None:
                    await self._ledger.release(hold)
                else:
                    await self._ledger.settle(hold, settlement)
            except Unavailable:
                await anyio.sleep(SETTLE_AGAIN_S)
            except BulkheadError as exc:
                _log.warning("the ledger refuses what a model call has cost: %s", exc.code)
                return False
            else:
                return True


def _bill(offer: Offer, call: _Call, upper: Decimal | None) -> Bill:
    return Bill(
        call_key=call.asked.key,
        attempt=call.number,
        model=offer.model.name,
        endpoint=offer.endpoint.name,
        price=offer.price,
        upper=upper or Decimal(0),
    )


def _served(route: Route, offer: Offer, call: _Call) -> Served:
    first = route.offers[0]
    return Served(
        model=offer.model.name,
        endpoint=offer.endpoint.name,
        tier=offer.model.tier.name.lower(),
        required=route.required.name.lower(),
        downgraded=route.is_downgrade(offer),
        fallback=None if offer is first else "endpoint" if offer.model.name == first.model.name else "model",
        attempts=call.started,
        cost=None if offer.price is None and not call.spent else f"{call.spent.normalize():f}",
        estimated=call.estimated,
    )


def _refusal(route: Route, call: _Call) -> BulkheadError:
    """Return why nothing was written: what stopped the first choice, or else why there was none."""
    if call.failures:
        # "refused before anything was sent" is no longer true once something was
        return call.failures[-1] if call.started else call.failures[0]
    if route.passed_over and all(passed.why is Why.TOO_LONG for passed in route.passed_over):
        return InvalidInput("the prompt is too long for every model that may answer it")
    return Unavailable(f"no model may answer this: {route.reasons[-1]}")


def _describe(span: trace.Span, served: Served) -> None:
    span.set_attribute("bulkhead.llm.model", served.model)
    span.set_attribute("bulkhead.llm.tier", served.tier)
    span.set_attribute("bulkhead.llm.downgraded", served.downgraded)
    span.set_attribute("bulkhead.llm.attempts", served.attempts)
    span.set_attribute("bulkhead.llm.estimated", served.estimated)
    if served.fallback is not None:
        span.set_attribute("bulkhead.llm.fallback", served.fallback)
    if served.cost is not None:
        span.set_attribute("bulkhead.llm.cost", served.cost)

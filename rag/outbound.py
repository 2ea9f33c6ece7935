"""HTTP to addresses that a tenant names: webhooks and servers of its own. Nothing of ours can be reached through it.

Above: whatever calls out on a tenant's behalf. Below: httpx2. Who may choose the URL may also own the name in it, and
answer each look-up differently. So of every request, one that follows a redirect included:

1. The scheme is https; plain http only to this machine, and only where the caller allows loopback (tests).
2. The name is resolved once, here. Every address that it has must be public; one that is not refuses them all.
3. The connection goes to an address that was checked. The name is what TLS verifies, and what the Host header says.
4. It carries one request: another name at the same address gets a connection, and a certificate check, of its own.

No proxy and no credential comes from the environment, no redirect is followed, and no cookie is kept.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2

from rag.errors import InvalidInput, Misconfigured

__all__ = ["MAX_URL_CHARS", "AddressRefused", "Resolve", "check_url", "is_public", "pinned_client", "resolver"]

MAX_URL_CHARS = 2048
MAX_ADDRESSES = 8
"""Of one name; further ones are checked as well, and not tried."""
CONNECT_S = 10.0
"""For the look-up, and for each address that is tried."""
READ_S = 30.0
LOOK_UPS = 64
"""At a time. One blocks a thread for as long as a stranger's name server likes; see `resolver`."""
MAX_CONNECTIONS = 256
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Takes a host name and a port, returns its addresses; raises OSError where there are none."""

_NAT64 = ip_network("64:ff9b::/96")
"""RFC 6052: an IPv6-only network reaches IPv4 by it. What counts is the IPv4 address inside."""
_UNICAST = ip_network("2000::/3")
"""All that IANA has given out for global unicast."""
_SPECIAL = tuple(
    ip_network(block)
    for block in (
        # IANA's special-purpose registries, where ipaddress calls a block, or a part of one, global
        "192.0.0.0/24",  # protocol assignments
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.175.48.0/24",  # AS112
        "2001::/23",  # Teredo, ORCHID and other assignments
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
        # public numbers behind which a cloud keeps its machines' secrets
        "168.63.129.16/32",  # Azure
    )
)


class AddressRefused(httpx2.ConnectError):
    """The URL leads to where a tenant must not send us. Says so without telling which address it is."""


def is_public(address: str) -> bool:
    """Tell whether `address` is one that anybody on the internet may be reached at."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return _is_public(parsed)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        # a mapped address is outside, as is every other way to write an IPv4 address in IPv6
        if address.scope_id is not None or address not in _UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in block for block in _SPECIAL)
    )


def check_url(url: str, *, allow_loopback: bool = False) -> None:
    """Refuse at the door what no request would be sent to. Names are looked up when they are used, not here.

    Raises:
        InvalidInput: It is no https URL of a host, carries credentials or a fragment, is too long, or names an address
            that is not public.
    """
    if len(url) > MAX_URL_CHARS:
        raise InvalidInput(f"the URL is longer than {MAX_URL_CHARS} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidInput("the URL holds characters that a URL does not have; encode them")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as exc:
        raise InvalidInput("the URL is malformed") from exc
    if not parsed.host or parsed.userinfo or parsed.fragment:
        raise InvalidInput("the URL needs a host, and must carry neither credentials nor a fragment")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidInput("the URL's port is 1 to 65535")
    if parsed.scheme != "https" and not (allow_loopback and parsed.scheme == "http"):
        raise InvalidInput("the URL must begin with https://")
    plain = parsed.scheme == "http"
    try:
        literal = ip_address(parsed.host)
    except ValueError:
        if plain and parsed.host != "localhost":
            raise InvalidInput("the URL must begin with https://, unless it is on this machine") from None
        return
    if not _is_allowed(literal, plain=plain, allow_loopback=allow_loopback):
        raise InvalidInput("the URL names an address that is not public")


def resolver() -> Resolve:
    """Return what looks names up as this machine sees them, in threads of its own.

    The event loop has a few threads for look-ups, by which it finds the database and the model. Name servers that do
    not answer would hold them all.
    """
    places = anyio.CapacityLimiter(LOOK_UPS)

    async def resolve(host: str, port: int) -> Sequence[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=places)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    return resolve


def pinned_client(
    *, allow_loopback: bool = False, ca: Path | None = None, resolve: Resolve | None = None
) -> httpx2.AsyncClient:
    """Return a client that reaches public addresses only, for the caller to close.

    It raises what httpx2 raises; `AddressRefused`, a ConnectError, where the URL leads elsewhere, and
    UnsupportedProtocol for another scheme. Nothing bounds the size of an answer: stream it, and stop.

    Args:
        allow_loopback: This machine may be reached too, also by plain http. For tests and compatibility kits.
        ca: PEM bundle to trust besides the system's.
        resolve: Looks names up; None: a `resolver`.

    Raises:
        Misconfigured: `ca` cannot be used.
    """
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(cafile=str(ca))
        except OSError as exc:  # ssl.SSLError is one
            raise Misconfigured("BULKHEAD_CA_CERTIFICATE does not name a readable file of PEM certificates") from exc
    return httpx2.AsyncClient(
        transport=_Pinned(context, allow_loopback=allow_loopback, resolve=resolve or resolver()),
        timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
        follow_redirects=False,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _Pinned(httpx2.AsyncBaseTransport):
    def __init__(self, context: ssl.SSLContext, *, allow_loopback: bool, resolve: Resolve) -> None:
        # connections are told apart by address, so none may be used again: it may be another name's
        limits = httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=0)
        self._inner = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, http2=False, limits=limits)
        self._allow_loopback = allow_loopback
        self._resolve = resolve

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        if url.scheme != "https" and not (self._allow_loopback and url.scheme == "http"):
            raise httpx2.UnsupportedProtocol("the URL must begin with https://", request=request)
        addresses = await self._checked_addresses(request)
        # the name goes on in the Host header, which the request has already
        headers = httpx2.Headers([pair for pair in request.headers.raw if pair[0].lower() != b"connection"])
        headers["connection"] = "close"
        extensions = {**request.extensions, "sni_hostname": url.raw_host.decode("ascii")}
        for last, address in ((address is addresses[-1], address) for address in addresses):
            pinned = httpx2.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=headers,
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._inner.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if last:
                    raise
        raise AssertionError("a name without addresses is refused above")

    async def _checked_addresses(self, request: httpx2.Request) -> list[Address]:
        url = request.url
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        bound_s = request.extensions.get("timeout", {}).get("connect") or CONNECT_S
        try:
            with anyio.fail_after(bound_s):
                found = await self._resolve(host, port)
            addresses = [ip_address(text) for text in found]
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout(f"{host} was not looked up within {bound_s:g} s", request=request) from exc
        except (OSError, ValueError) as exc:  # ValueError: a name that cannot be encoded, or no address
            raise httpx2.ConnectError(f"{host} cannot be looked up", request=request) from exc
        if not addresses:
            raise httpx2.ConnectError(f"{host} has no address", request=request)
        plain = url.scheme == "http"
        if not all(_is_allowed(address, plain=plain, allow_loopback=self._allow_loopback) for address in addresses):
            raise AddressRefused(f"{host} does not lead to a public address", request=request)
        return addresses[:MAX_ADDRESSES]

    async def aclose(self) -> None:
        await self._inner.aclose()


def _is_allowed(address: Address, *, plain: bool, allow_loopback: bool) -> bool:
    if allow_loopback and address.is_loopback:
        return True
    return not plain and _is_public(address)

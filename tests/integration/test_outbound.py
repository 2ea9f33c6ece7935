"""Calling out to where a tenant says: names that lead inside, names that change their mind, and a real TLS server."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from rag.errors import InvalidInput, Misconfigured
from rag.identity.tls import TlsFiles, ensure_development_tls
from rag.outbound import AddressRefused, check_url, is_public, pinned_client
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
PUBLIC = "93.184.215.14"
BOUND_S = 5.0
INSIDE = [
    "0.0.0.0",  # noqa: S104  # nothing is bound to it
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.170",
    "192.168.1.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "168.63.129.16",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:5db8:d70e::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "no address",
]


@dataclass(slots=True, kw_only=True)
class Names:
    """A resolver that says what it is told to, and remembers what it was asked."""

    answers: list[Sequence[str]]
    asked: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Answer the next question; the last answer stands for all that follow."""
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A TLS server on this machine whose certificate is for hook.example."""

    port: int
    ca: Path
    seen: list[Request] = field(default_factory=list[Request])


@asynccontextmanager
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    files: TlsFiles = ensure_development_tls(tmp_path, ("hook.example",))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        found = Place(port=int(listening.getsockname()[1]), ca=files.ca)

        async def answer(request: Request) -> Response:
            found.seen.append(request)
            if request.url.path == "/moved":
                return RedirectResponse("https://169.254.169.254/")
            return PlainTextResponse("here", headers={"set-cookie": "who=acme; Path=/"})

        app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
        async with serving(app, listening, tls=files):
            yield found


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused_whatever_else_it_leads_to(address: str) -> None:
    assert not is_public(address)
    for answer in ([address], [PUBLIC, address]):
        names = Names(answers=[answer])
        async with pinned_client(resolve=names) as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get("https://hook.example/")
        assert names.asked == [("hook.example", 443)]


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
async def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


async def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_is_verified(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        names = Names(answers=[["127.0.0.1"], ["10.0.0.1"]])
        async with pinned_client(allow_loopback=True, ca=there.ca, resolve=names) as client:
            answer = await client.post(f"https://hook.example:{there.port}/hook", content=b"told")
            assert (answer.status_code, answer.text) == (200, "here")
            assert names.asked == [("hook.example", there.port)], "looked up once"
            assert there.seen[0].headers["host"] == f"hook.example:{there.port}"
            # and the next request is checked anew
            with pytest.raises(AddressRefused):
                await client.get(f"https://hook.example:{there.port}/hook")


async def test_another_name_at_the_same_address_gets_no_connection_of_the_first(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        names = Names(answers=[["127.0.0.1"]])
        async with pinned_client(allow_loopback=True, ca=there.ca, resolve=names) as client:
            await client.get(f"https://hook.example:{there.port}/")
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(f"https://other.example:{there.port}/")
        assert len(there.seen) == 1


async def test_an_address_that_does_not_answer_gives_way_to_the_next(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        names = Names(answers=[["127.0.0.2", "::1", "127.0.0.1"]])
        async with pinned_client(allow_loopback=True, ca=there.ca, resolve=names) as client:
            assert (await client.get(f"https://hook.example:{there.port}/")).text == "here"


async def test_no_redirect_is_followed_no_cookie_kept_and_no_proxy_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with place(tmp_path) as there:
        names = Names(answers=[["127.0.0.1"]])
        async with pinned_client(allow_loopback=True, ca=there.ca, resolve=names) as client:
            for _ in range(2):
                await client.get(f"https://hook.example:{there.port}/")
            moved = await client.get(f"https://hook.example:{there.port}/moved")
        assert moved.status_code == 307
        assert [host for host, _ in names.asked] == ["hook.example"] * 3
        assert all("cookie" not in request.headers for request in there.seen)


async def test_plain_http_is_for_this_machine_and_only_where_that_is_allowed() -> None:
    names = Names(answers=[["127.0.0.1"]])
    async with pinned_client(resolve=names) as client:
        with pytest.raises(httpx2.UnsupportedProtocol):
            await client.get("http://localhost:1/")
    assert not names.asked
    outside = Names(answers=[[PUBLIC]])
    async with pinned_client(allow_loopback=True, resolve=outside) as client:
        with pytest.raises(AddressRefused):
            await client.get("http://localhost:1/")


async def test_a_name_without_addresses_is_no_connection() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(host, port)

    for names in (unknown, Names(answers=[[]])):
        async with pinned_client(resolve=names) as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get("https://hook.example/")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]"])
async def test_this_machine_by_any_of_its_spellings_is_refused_by_the_real_resolver(host: str) -> None:
    async with pinned_client() as client:
        with pytest.raises((httpx2.ConnectError, httpx2.InvalidURL)):
            await client.get(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook.example",
        "ftp://hook.example/",
        "http://hook.example/",
        "https://",
        "https://user@hook.example/",
        "https://hook.example/#part",
        "https://hook.example/\r\nx: y",
        "https://hook.example\\@evil.example/",
        "https://höok.example/",
        "https://10.0.0.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::1]:8443/",
        "https://hook.example/" + "a" * 2048,
        "https://hook.example:99999/",
    ],
)
async def test_what_no_request_is_sent_to_is_refused_at_the_door(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url)


async def test_what_may_be_called_is_let_in() -> None:
    check_url("https://hook.example:8443/path?query=1")
    check_url(f"https://{PUBLIC}/")
    check_url("http://127.0.0.1:9999/hook", allow_loopback=True)
    check_url("http://localhost:9999/hook", allow_loopback=True)
    with pytest.raises(InvalidInput):
        check_url("http://hook.example/", allow_loopback=True)


async def test_an_authority_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        pinned_client(ca=tmp_path / "none.pem")


async def test_a_name_server_that_does_not_answer_keeps_no_look_up_of_ours_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Look-ups block a thread each. The database, the model and the MCP server are found by the event loop's few."""
    silent, real = threading.Event(), socket.getaddrinfo

    def look_up(host: str | bytes, *arguments: Any, **named: Any) -> Any:
        if "example" in str(host):
            silent.wait(BOUND_S)
            raise socket.gaierror
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def call(client: httpx2.AsyncClient, number: int) -> None:
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get(f"https://hook{number}.example/", timeout=0.2)

    try:
        with anyio.fail_after(BOUND_S):
            async with pinned_client() as client, anyio.create_task_group() as group:
                for number in range(64):
                    group.start_soon(call, client, number)
            # those that asked are gone; whoever they asked has still not answered
            assert await anyio.getaddrinfo("localhost", 5432)
    finally:
        silent.set()

"""The command line as a user meets it: real processes, the embedded database, nothing prepared."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest

from rag.cli.supervisor import free_port

pytestmark = pytest.mark.xdist_group("cli")

READY_BOUND_S = 90.0
COMMAND_BOUND_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Installation:
    """A data directory, and the environment that makes `bulkhead` use it."""

    root: Path
    env: dict[str, str]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "rag.cli", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=COMMAND_BOUND_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


class Up:
    """A running `bulkhead up`."""

    def __init__(self, installation: Installation, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rag.cli", "up", *arguments],
            env=installation.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        guard = threading.Timer(READY_BOUND_S, self.process.kill)
        guard.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        guard.cancel()
        if not line:
            pytest.fail(f"bulkhead up did not become ready: {self.process.communicate()[1]}")
        self.addresses: dict[str, str] = json.loads(line)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            _, errors = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            pytest.fail("bulkhead up was not gone within 10 s of SIGTERM")
        assert "Traceback" not in errors
        return self.process.returncode


def installation(root: Path) -> Installation:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}  # noqa: TID251
    return Installation(
        root=root,
        env={
            **inherited,
            "BULKHEAD_DATA_DIR": str(root / "data"),
            "BULKHEAD_CERTS_DIR": str(root / "certs"),
            "BULKHEAD_MCP_PORT": str(free_port("127.0.0.1")),
            "BULKHEAD_A2A_PORT": str(free_port("127.0.0.1")),
        },
    )


@pytest.fixture(scope="module", name="system")
def system_fixture(tmp_path_factory: pytest.TempPathFactory) -> Generator[Installation]:
    made = installation(tmp_path_factory.mktemp("cli"))
    up = Up(made)
    try:
        made.run("tenant", "create", "acme")
        made.run("tenant", "create", "globex")
        yield made
    finally:
        assert up.stop() == 0


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "lease.md").write_text(
        "# Lease of the mill\n\nThe tenant may end this lease by giving ninety days' notice in writing.\n\n"
        "The landlord repairs the roof. The tenant keeps the machines in order.\n",
        encoding="utf-8",
    )
    (folder / "pets.txt").write_text("Dogs are allowed in the yard. Cats go where they please.", encoding="utf-8")
    (folder / "empty.md").write_text("", encoding="utf-8")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and then nothing that makes sense")
    return folder


def test_tenants_are_created_and_listed(system: Installation) -> None:
    assert [tenant["name"] for tenant in system.json("tenant", "list")] == ["acme", "globex"]
    again = system.run("tenant", "create", "acme", check=False)
    assert again.returncode == 1
    assert "a tenant of that name exists" in again.stderr


def test_token_prints_the_token_and_nothing_else(system: Installation) -> None:
    printed = system.run("token", "--tenant", "acme", "--user", "ada", "--audience", "mcp-server").stdout
    claims = jwt.decode(printed.strip(), options={"verify_signature": False})
    assert printed.count("\n") == 1
    assert (claims["sub"], claims["aud"]) == ("ada", "mcp-server")
    assert {"iss", "aud", "sub", "tenant_id", "scope", "exp", "nbf", "iat", "jti"} <= claims.keys()


def test_ingest_takes_what_is_good_refuses_what_is_not_and_changes_nothing_twice(
    system: Installation, folder: Path
) -> None:
    first = system.run("ingest", str(folder), "--tenant", "acme", "--json", check=False)
    report = json.loads(first.stdout)
    assert first.returncode == 1, "something was refused"
    assert (report["created"], report["updated"], report["unchanged"]) == (2, 0, 0)
    assert {refusal["source"] for refusal in report["refused"]} == {"empty.md", "broken.pdf"}
    second = json.loads(system.run("ingest", str(folder), "--tenant", "acme", "--json", check=False).stdout)
    assert (second["created"], second["updated"], second["unchanged"]) == (0, 0, 2)


def test_search_finds_it_for_its_tenant_and_for_no_other(system: Installation, folder: Path) -> None:
    system.run("ingest", str(folder / "lease.md"), "--tenant", "acme")
    found = system.json("search", "--tenant", "acme", "notice in writing to end the lease")
    assert found["hits"][0]["title"] == "Lease of the mill"
    assert system.json("search", "--tenant", "globex", "notice in writing to end the lease")["hits"] == []


def test_ask_shows_progress_and_ends_in_a_cited_answer(system: Installation, folder: Path) -> None:
    system.run("ingest", str(folder / "lease.md"), "--tenant", "acme")
    asked = system.run("ask", "--tenant", "acme", "How can the tenant end the lease?")
    assert "ninety days" in asked.stdout
    assert "extractive" in asked.stdout + asked.stderr
    answer = system.json("ask", "--tenant", "acme", "How can the tenant end the lease?")
    assert answer["answerer"] == "extractive"
    assert answer["citations"]
    assert all(citation["verified"] for citation in answer["citations"])


def test_doctor_finds_everything_in_order(system: Installation) -> None:
    findings = {finding["name"]: finding for finding in system.json("doctor")}
    assert {name for name, finding in findings.items() if finding["verdict"] == "off"} == {"redis", "language model"}
    assert all(finding["verdict"] != "failed" for finding in findings.values()), findings


def test_doctor_says_what_to_do_where_nothing_runs(tmp_path: Path) -> None:
    done = installation(tmp_path).run("doctor", "--json", check=False)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["database"]["verdict"] == "failed"
    assert "bulkhead up" in findings["database"]["advice"]
    assert not (tmp_path / "data").exists(), "a doctor installs nothing"


def test_a_revoked_user_is_refused_at_once(system: Installation) -> None:
    token = system.run("token", "--tenant", "acme", "--user", "eve", "--audience", "mcp-server").stdout.strip()
    carrying = dataclasses.replace(system, env={**system.env, "BULKHEAD_TOKEN": token})
    carrying.run("search", "anything")
    system.run("token", "revoke", "--tenant", "acme", "--user", "eve")
    refused = carrying.run("search", "anything", check=False)
    assert refused.returncode == 1
    assert "revoked" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--tenant", "nobody", "x"], "there is no tenant 'nobody'"),
        (["search", "x"], "name a tenant with --tenant"),
        (["token", "--tenant", "acme"], "a token needs --tenant and --audience"),
        (["tenant", "create", "Not A Name"], "a tenant's name is"),
        (["token", "revoke", "--tenant", "acme"], "say which"),
    ],
)
def test_mistakes_end_in_one_clear_line(system: Installation, arguments: list[str], message: str) -> None:
    done = system.run(*arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_log_holds_a_token_a_key_or_a_documents_text(system: Installation, folder: Path) -> None:
    token = system.run("token", "--tenant", "acme", "--user", "log", "--audience", "mcp-server").stdout.strip()
    carrying = dataclasses.replace(system, env={**system.env, "BULKHEAD_TOKEN": token})
    carrying.run("ingest", str(folder / "lease.md"))
    carrying.run("search", "repairs of the roof")
    system.run("ask", "--tenant", "acme", "Who repairs the roof?")
    logs = {path.name: path.read_text(encoding="utf-8") for path in (system.root / "data").rglob("*.log")}
    assert {"mcp_server.log", "a2a_server.log", "workflows.log", "postgres.log"} <= logs.keys()
    secrets = json.loads((system.root / "data" / "database-passwords.json").read_text(encoding="utf-8"))
    forbidden = [token, token.split(".")[2], "repairs the roof", "ninety days", *secrets.values()]
    for name, text in logs.items():
        for needle in forbidden:
            assert needle not in text, name
    lines = [json.loads(line) for line in logs["workflows.log"].splitlines()]
    assert any("task" in line and "tenant" in line for line in lines), "a run's lines name its task and tenant"


def test_a_second_supervisor_on_the_same_data_is_refused(system: Installation) -> None:
    done = system.run("up", check=False)
    assert done.returncode == 1
    assert "already runs" in done.stderr


def test_after_a_kill_the_next_start_finds_the_data_and_no_leftovers(tmp_path: Path, folder: Path) -> None:
    made = installation(tmp_path)
    first = Up(made)
    made.run("tenant", "create", "acme")
    made.run("ingest", str(folder / "lease.md"), "--tenant", "acme")
    before = {child.pid for child in psutil.Process(first.process.pid).children(recursive=True)}
    first.process.kill()
    first.process.communicate()
    second = Up(made)
    try:
        found = made.json("search", "--tenant", "acme", "ninety days notice")
        assert found["hits"][0]["title"] == "Lease of the mill"
        servers = [pid for pid in before if psutil.pid_exists(pid) and "mcp_server" in " ".join(_cmdline(pid))]
        assert servers == []
    finally:
        assert second.stop() == 0


def test_up_serves_tls_with_its_own_authority(tmp_path: Path) -> None:
    made = installation(tmp_path)
    up = Up(made, "--tls")
    try:
        assert up.addresses["mcp"].startswith("https://")
        authority = ssl.create_default_context(cafile=str(tmp_path / "certs" / "ca.pem"))
        card = httpx.get(up.addresses["agent_card"], verify=authority, timeout=10)
        assert card.status_code == 200
        assert "https://" in card.text
        with pytest.raises(httpx.ConnectError):
            httpx.get(up.addresses["agent_card"], timeout=10)
    finally:
        assert up.stop() == 0


def _cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []

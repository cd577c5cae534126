# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Forking and locking need processes of their own, so most tests run a small program."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from qsd.errors import QmpError
from qsd.process import PidFile, set_process_name

if TYPE_CHECKING:
    from pathlib import Path


def run(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has this package at hand."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_all_descriptors_are_used(tmp_path: Path) -> None:
    done = run(
        """
        from resource import RLIMIT_NOFILE, getrlimit, setrlimit
        from qsd.process import use_all_descriptors
        hard = getrlimit(RLIMIT_NOFILE)[1]
        setrlimit(RLIMIT_NOFILE, (100, hard))
        use_all_descriptors()
        print(getrlimit(RLIMIT_NOFILE) == (hard, hard))
        """,
        tmp_path,
    )
    assert done.stdout == "True\n", done.stderr


class TestPidFile:
    def test_holds_the_process_id(self, tmp_path: Path) -> None:
        pidfile = PidFile(str(tmp_path / "p"))
        assert (tmp_path / "p").read_text() == f"{os.getpid()}\n"
        assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600
        pidfile.remove()
        assert not (tmp_path / "p").exists()

    def test_remove_is_idempotent(self, tmp_path: Path) -> None:
        pidfile = PidFile(str(tmp_path / "p"))
        pidfile.remove()
        (tmp_path / "p").write_text("somebody else's")
        pidfile.remove()
        assert (tmp_path / "p").exists()

    def test_takes_over_a_stale_file(self, tmp_path: Path) -> None:
        (tmp_path / "p").write_text("12345678901234567890\nmore\n")
        pidfile = PidFile(str(tmp_path / "p"))
        assert (tmp_path / "p").read_text() == f"{os.getpid()}\n"
        pidfile.remove()

    def test_is_removed_after_a_change_of_directory(self, tmp_path: Path) -> None:
        done = run(
            """
            import os
            from qsd.process import PidFile
            pidfile = PidFile("p")
            os.chdir("/")
            pidfile.remove()
            """,
            tmp_path,
        )
        assert done.stderr == ""
        assert not (tmp_path / "p").exists()

    def test_a_second_process_is_refused(self, tmp_path: Path) -> None:
        pidfile = PidFile(str(tmp_path / "p"))
        done = run(
            """
            from qsd.errors import QmpError
            from qsd.process import PidFile
            try:
                PidFile("p")
            except QmpError as exc:
                print(exc)
            """,
            tmp_path,
        )
        assert done.stdout == (
            "cannot create PID file: Cannot lock pid file: Resource temporarily unavailable\n"
        )
        assert (tmp_path / "p").read_text() == f"{os.getpid()}\n"
        pidfile.remove()

    @pytest.mark.parametrize("name", ["no/such/dir/p", ""])
    def test_cannot_be_made(self, tmp_path: Path, name: str) -> None:
        path = str(tmp_path / name) if name else ""
        with pytest.raises(QmpError) as caught:
            PidFile(path)
        assert caught.value.desc == (
            f"cannot create PID file: Could not create '{path}': No such file or directory"
        )


class TestDaemonize:
    def test_the_parent_waits_for_the_start(self, tmp_path: Path) -> None:
        done = run(
            """
            import os
            from qsd.process import fork_daemon
            duty = fork_daemon()
            if duty is None:
                # The parent: everything the child did before finish() is there to see.
                print(open("report").read())
                raise SystemExit(0)
            assert os.getcwd() != "/"
            os.write(2, b"the terminal is still there\\n")
            with open("report", "w") as report:
                report.write(f"{os.getsid(0) != os.getpid()} {os.umask(0):o}")
            duty.finish()
            os._exit(0)
            """,
            tmp_path,
        )
        assert done.returncode == 0
        assert done.stdout == "True 27\n"
        assert done.stderr == "the terminal is still there\n"

    def test_afterwards_nothing_holds_the_terminal(self, tmp_path: Path) -> None:
        done = run(
            """
            import os, sys
            from qsd.process import fork_daemon
            where = os.path.abspath("report")
            duty = fork_daemon()
            if duty is None:
                # Whoever wrote the report did so after the start: wait for the end of its writing.
                open(where + ".pipe").read()
                print(open(where).read())
                raise SystemExit(0)
            os.mkfifo(where + ".pipe")
            duty.finish()
            streams = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
            with open(where, "w") as report:
                report.write(" ".join([os.getcwd(), *streams]))
            open(where + ".pipe", "w").close()
            os._exit(0)
            """,
            tmp_path,
        )
        assert done.stdout == "/ /dev/null /dev/null /dev/null\n"
        assert done.returncode == 0

    @pytest.mark.parametrize("end", ["os._exit(1)", "os._exit(0)", "os.kill(os.getpid(), 9)"])
    def test_a_failed_start_is_reported(self, tmp_path: Path, end: str) -> None:
        done = run(
            f"""
            import os
            from qsd.process import fork_daemon
            if fork_daemon() is None:
                raise SystemExit(0)
            {end}
            """,
            tmp_path,
        )
        assert done.returncode == 1
        assert done.stderr == ""


def test_process_name(tmp_path: Path) -> None:
    done = run(
        """
        from qsd.process import set_process_name
        set_process_name("qemu-storage-daemon")
        print(open("/proc/self/comm").read(), end="")
        """,
        tmp_path,
    )
    assert done.stdout == "qemu-storage-da\n"


def test_process_name_is_best_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    set_process_name("x")

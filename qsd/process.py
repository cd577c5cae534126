# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The daemon as an operating-system process: its name, its pid file, its life in the background.

Going to the background happens in two halves, because the parent has to report whether the start
succeeded:

1. :func:`fork_daemon` forks twice (the session leader in between goes away, so the daemon can
   never acquire a terminal).  The original process stays and waits at a pipe.  The child keeps its
   working directory and its standard streams for now: relative paths still mean what the user
   meant, and errors reach the terminal.
2. :func:`Daemonized.finish` leaves the directory, turns the standard streams to ``/dev/null`` and
   writes one byte into the pipe.  The parent exits with status 0 when it reads that byte, with
   status 1 when the pipe closes without it.
"""

from __future__ import annotations

import os

from qsd.errors import QmpError, describe

#: What the kernel keeps of a task's name: 16 bytes with the final zero (prctl(2), PR_SET_NAME).
_MAX_COMM = 15
#: The daemon's files are its user's; a group may read (umask(2)).
_DAEMON_UMASK = 0o027


def set_process_name(name: str) -> None:
    """Set the name that ``ps`` and ``pgrep`` know the process by; best effort."""
    try:
        # The file does what prctl(PR_SET_NAME) does and needs no foreign-function module.
        with open("/proc/self/comm", "wb") as comm:
            comm.write(name.encode()[:_MAX_COMM])
    except OSError:
        pass


def use_all_descriptors() -> None:
    """Raise the soft limit of open files to the hard one.

    The usual soft limit of 1024 is there for programs that use select(2), and is too low for a
    thousand clients.
    """
    from resource import RLIMIT_NOFILE, getrlimit, setrlimit

    _, hard = getrlimit(RLIMIT_NOFILE)
    try:
        setrlimit(RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # then there are as many as there are


class Daemonized:
    """The background child's duty to tell its parent how the start went."""

    __slots__ = ("_pipe",)

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def finish(self) -> None:
        """Let go of directory and terminal, then tell the parent that the start succeeded.

        Raises:
            QmpError: One of these steps failed; the parent was told nothing.
        """
        try:
            os.chdir("/")
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.close(null)
        except OSError as exc:
            raise QmpError(f"cannot daemonize: {describe(exc)}") from exc
        os.write(self._pipe, b"\0")
        os.close(self._pipe)


def fork_daemon() -> Daemonized | None:
    """Fork into the background; return the child's duty, or None to the parent of a good start.

    The parent returns only after the child finished its start.  Where the start failed, it ends
    with exit status 1; the child has reported why.

    Raises:
        QmpError: The process cannot fork.
    """
    read_end, write_end = os.pipe()
    try:
        child = os.fork()
    except OSError as exc:
        raise QmpError(f"failed to fork: {describe(exc)}") from exc
    if child:
        os.close(write_end)
        started = os.read(read_end, 1) == b"\0"
        os.close(read_end)
        if not started:
            raise SystemExit(1)
        return None
    os.close(read_end)
    os.setsid()
    try:
        if os.fork():
            os._exit(0)
    except OSError as exc:
        raise QmpError(f"failed to fork: {describe(exc)}") from exc
    os.umask(_DAEMON_UMASK)
    return Daemonized(write_end)


class PidFile:
    """A file with the process id, locked as long as the process lives.

    Attributes:
        path: Absolute path, resolved when the file was made.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        """Create or take over the file, lock it and write the process id.

        Raises:
            QmpError: The file cannot be made, or another process holds its lock.
        """
        import fcntl

        while True:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                raise _failed(f"Could not create '{path}'", exc) from exc
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                os.close(fd)
                raise _failed("Cannot lock pid file", exc) from exc
            if _is_same_file(fd, path):
                break
            # Its former owner removed the file between our opening and locking it.
            os.close(fd)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except OSError as exc:
            os.close(fd)
            raise _failed("Failed to write pid file", exc) from exc
        self._fd = fd
        self.path = os.path.realpath(path)

    def remove(self) -> None:
        """Remove the file and release its lock.  Idempotent."""
        if self._fd < 0:
            return
        try:
            os.unlink(self.path)
        except OSError:
            pass
        os.close(self._fd)
        self._fd = -1


def _failed(what: str, exc: OSError) -> QmpError:
    return QmpError(f"cannot create PID file: {what}: {describe(exc)}")


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False

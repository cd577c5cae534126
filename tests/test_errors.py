# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os

import pytest

from qsd import errors
from qsd.errors import (
    DEVICE_NOT_FOUND,
    GENERIC_ERROR,
    ClosedError,
    PeerError,
    PermissionConflict,
    QmpError,
    QsdError,
    describe,
    describe_path_error,
    os_error,
    prefixed,
)


def test_the_tree_is_as_drawn() -> None:
    assert errors.__doc__ is not None
    for cls in (QmpError, PermissionConflict, PeerError, ClosedError):
        assert cls.__name__ in errors.__doc__
        assert issubclass(cls, QsdError)
    assert issubclass(PermissionConflict, QmpError)
    assert not issubclass(QsdError, OSError)


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (QmpError("Node 'x' not found"), "Node 'x' not found"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("no number"), "no number"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "path"), "No such file or"),
        (ValueError("odd"), "odd"),
    ],
)
def test_describe_has_no_decorations(exc: BaseException, text: str) -> None:
    assert describe(exc).startswith(text)
    assert "Errno" not in describe(exc)


def test_os_errors_carry_a_number() -> None:
    assert os_error(errno.EIO).errno == errno.EIO
    assert os_error(errno.EIO).strerror == "Input/output error"
    assert os_error(errno.EIO, "Lost it").strerror == "Lost it"


def test_a_prefix_keeps_class_and_hint() -> None:
    inner = QmpError("not found", DEVICE_NOT_FOUND, hint="Look elsewhere.")
    outer = prefixed(inner, "Cannot open: ")
    assert (outer.desc, outer.error_class, outer.hint) == (
        "Cannot open: not found",
        DEVICE_NOT_FOUND,
        "Look elsewhere.",
    )


def test_a_prefix_turns_io_errors_into_replies() -> None:
    outer = prefixed(os_error(errno.EACCES), "Could not open 'f': ")
    assert (outer.desc, outer.error_class) == (
        "Could not open 'f': Permission denied",
        GENERIC_ERROR,
    )
    assert outer.hint is None


def test_peer_errors_say_whether_the_connection_survives() -> None:
    assert PeerError("bad magic").survives is False
    assert PeerError("unknown option", survives=True).survives is True


@pytest.mark.parametrize(
    "exc", [FileNotFoundError(errno.ENOENT, "No such file or directory"), ValueError("null byte")]
)
def test_a_path_with_a_nul_byte_is_not_there(exc: OSError | ValueError) -> None:
    assert describe_path_error(exc) == "No such file or directory"

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Secrets in the kernel's key ring."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects import secret_keyring
from qsd.objects.secret import SecretCommon
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.crypto import SecretKeyringProperties


def make(tree: ObjectTree, serial: int, **options: Any) -> bytes:
    run(tree.create("secret_keyring", "k", SecretKeyringProperties(serial=serial, **options)))
    return tree.resolve("k", SecretCommon).value()


@pytest.mark.parametrize(
    ("serial", "message"),
    [
        (0, r"^'serial' should not be equal to 0$"),
        # Which reason the kernel gives depends on the keys there are, and on the sandbox.
        (99999999, r"^Unable to read serial key 05f5e0ff: [A-Z]"),
        (-99999, r"^Unable to read serial key fffe7961: [A-Z]"),
    ],
)
def test_no_key(serial: int, message: str) -> None:
    with pytest.raises(QmpError, match=message):
        make(ObjectTree(), serial)


def test_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_keyring, "_read_key", {7: b"aGVsbG8="}.__getitem__)
    assert make(ObjectTree(), 7) == b"aGVsbG8="
    assert make(ObjectTree(), 7, format="base64") == b"hello"


def test_real_key() -> None:
    """A key of our own in the kernel's ring, where the kernel lets us have one."""
    import ctypes
    import os

    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of the system calls below are those of x86_64")
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    payload = b"in the kernel"
    # add_key(2) into the process keyring (-2), which goes away with the process.
    serial = syscall(248, b"user", b"qsd-test", payload, len(payload), -2)
    if serial < 0:
        pytest.skip("the kernel takes no keys from us")
    assert make(ObjectTree(), serial) == payload

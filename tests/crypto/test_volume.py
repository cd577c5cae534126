# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Volumes: several threads, forgetting the key."""

from __future__ import annotations

import os
import threading

import pytest

from qsd.crypto.volume import CipherSpec, Volume

SPEC = CipherSpec("aes-256", "cbc", "essiv", "sha256")


def test_threads_do_not_disturb_each_other() -> None:
    volume = Volume(SPEC, os.urandom(32))
    failures: list[int] = []

    def work(number: int) -> None:
        data = os.urandom(64 * 512)
        out = bytearray(len(data))
        for turn in range(20):
            volume.encrypt(number * 1000 + turn, data, out)
            volume.decrypt(number * 1000 + turn, out, out)
            if out != data:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_with_and_without_numpy() -> None:
    key = os.urandom(64)
    spec = CipherSpec("aes-256", "xts", "plain64", None)
    one, other = bytearray(512), bytearray(512)
    Volume(spec, key).encrypt(3, bytes(512), one)
    Volume(spec, key, use_numpy=False).encrypt(3, bytes(512), other)
    assert one == other


def test_runs() -> None:
    """Several runs at once are like one after the other."""
    volume = Volume(SPEC, os.urandom(32))
    data = os.urandom(5 * 512)
    apart, together = bytearray(len(data)), bytearray(len(data))
    volume.encrypt(100, data[:1024], memoryview(apart)[:1024])
    volume.encrypt(7, data[1024:], memoryview(apart)[1024:])
    runs = [(100, 2), (7, 3)]
    volume.encrypt_runs(runs, data, together)
    assert together == apart
    volume.decrypt_runs(runs, together, together)
    assert together == data


def test_forget() -> None:
    key = os.urandom(32)
    volume = Volume(SPEC, key)
    assert key.hex() not in repr(volume)
    volume.forget()
    with pytest.raises(ValueError, match="key"):
        volume.encrypt(0, bytes(512), bytearray(512))

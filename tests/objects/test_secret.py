# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Secrets: every message was recorded from the C daemon."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.secret import Secret, SecretCommon, to_bytes
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.crypto import SecretProperties

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"0123456789abcdef" * 2
IV = b"fedcba9876543210"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encrypted(data: bytes) -> str:
    padding = 16 - len(data) % 16
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
    return b64(encryptor.update(data + bytes([padding]) * padding) + encryptor.finalize())


@pytest.fixture
def tree() -> ObjectTree:
    tree = ObjectTree()
    run(tree.create("secret", "master", SecretProperties(data=b64(KEY), format="base64")))
    run(tree.create("secret", "short", SecretProperties(data="x" * 31)))
    run(tree.create("iothread", "io"))
    return tree


def make(tree: ObjectTree, **options: Any) -> bytes:
    made = run(tree.create("secret", "s", SecretProperties(**options)))
    assert isinstance(made, Secret)
    return made.value()


def failure(tree: ObjectTree, **options: Any) -> str:
    with pytest.raises(QmpError) as caught:
        make(tree, **options)
    return caught.value.desc


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"data": "raw"}, b"raw"),
        ({"data": ""}, b""),
        ({"data": "ÿ€"}, "ÿ€".encode()),
        ({"data": "\0x"}, b"\xc0\x80x"),
        ({"data": "aGVsbG8=", "format": "base64"}, b"hello"),
        ({"data": "x", "iv": "!!"}, b"x"),  # without keyid nobody looks at iv
        ({"data": encrypted(b"hunter2"), "keyid": "master", "iv": b64(IV), "format": "base64"},
         b"hunter2"),
        ({"data": "", "keyid": "master", "iv": b64(IV)}, b""),
    ],
)  # fmt: skip
def test_values(tree: ObjectTree, options: dict[str, Any], value: bytes) -> None:
    assert make(tree, **options) == value


ENCRYPTED = {"keyid": "master", "iv": b64(IV)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Either 'file' or 'data' must be provided"),
        ({"data": "", "file": ""}, "'file' and 'data' are mutually exclusive"),
        ({"data": "!!!!", "format": "base64"}, "Base64 data contains invalid characters"),
        ({"data": "x", "keyid": "master"}, "IV is required to decrypt secret"),
        ({"data": "x", "keyid": "short"}, "Key should be 32 bytes in length"),
        ({"data": "x", "keyid": ""}, "No secret with id ''"),
        ({"data": "x", "keyid": "io"}, "Object with id 'io' is not a secret"),
        ({"data": "x", "keyid": "s"}, "Secret with id 's' has no data"),
        ({"data": "", "keyid": "master", "iv": ""}, "IV should be 16 bytes in length not 0"),
        ({"data": "!", "format": "base64", "keyid": "master", "iv": "AAAA"},
         "IV should be 16 bytes in length not 3"),
        ({"data": "", "keyid": "master", "iv": "!!"}, "Base64 data contains invalid characters"),
        ({"data": "aGVsbG8=", "format": "base64", **ENCRYPTED},
         "Length 5 must be a multiple of block size 16"),
        ({"data": "0123456789abcdef", **ENCRYPTED},
         "Incorrect number of padding bytes (44) found on decrypted data"),
        ({"file": "/nope", "keyid": "nope"},
         "Unable to read /nope: Failed to open file “/nope”: No such file or directory"),
        ({"file": ""}, "Unable to read : Failed to open file “”: No such file or directory"),
        ({"file": "/"}, "Unable to read /: Error reading file “/”: Is a directory"),
        ({"data": "x", "loaded": True}, "Property 'secret.loaded' is not writable"),
    ],
)  # fmt: skip
def test_refused(tree: ObjectTree, options: dict[str, Any], message: str) -> None:
    assert failure(tree, **options) == message
    assert tree.find("s") is None


def test_files(tree: ObjectTree, tmp_path: Path) -> None:
    name = tmp_path / "secret"
    name.write_bytes(b"a\0b\xff")
    assert make(tree, file=str(name)) == b"a\0b\xff"
    run(tree.delete("s"))
    embedded = "Base64 data contains embedded NUL characters"
    assert failure(tree, file=str(name), format="base64") == embedded
    name.write_bytes(b64(b"\0\1binary").encode() + b"\n")
    assert make(tree, file=str(name), format="base64") == b"\0\1binary"


def test_properties(tree: ObjectTree) -> None:
    make(tree, data="aGVsbG8=", format="base64")
    secret = tree.resolve("s", Secret)
    assert {name: secret.get_json(name) for name in ("data", "file", "format", "iv", "keyid")} == {
        "data": "aGVsbG8=", "file": "", "format": "base64", "iv": "", "keyid": "",
    }  # fmt: skip
    assert secret.get_json("loaded") is True
    secret.set_json("data", "new")
    assert secret.get_json("data") == "new"
    assert secret.value() == b"hello"  # what was loaded stays


def test_value_shows_nowhere(tree: ObjectTree) -> None:
    make(tree, data="hunter2")
    assert "hunter2" not in repr(SecretProperties(data="hunter2"))
    secret = tree.resolve("s", SecretCommon)
    assert "hunter2" not in repr(secret) + repr(tree) + repr(vars(secret).keys())
    run(tree.delete("s"))
    with pytest.raises(QmpError, match=r"^Secret with id 's' has no data$"):
        secret.value()


def test_bytes_of_the_command_line() -> None:
    assert to_bytes(os.fsdecode(b"\xff\xfe")) == b"\xff\xfe"

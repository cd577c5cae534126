# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The table of types, compared with the C daemon's answers."""

from __future__ import annotations

import pytest

from qsd.objects.base import UserCreatable
from qsd.objects.types import (
    TYPES,
    find_creatable,
    find_type,
    is_interface,
    list_types,
    type_properties,
    user_creatable_names,
)

CREATABLE = [
    "authz-list", "authz-list-file", "authz-simple", "iothread", "main-loop", "pr-manager-helper",
    "secret", "secret_keyring", "thread-context", "throttle-group", "tls-cipher-suites",
    "tls-creds-anon", "tls-creds-psk", "tls-creds-x509",
]  # fmt: skip


def names(implements: str | None, *, with_abstract: bool = False) -> list[str]:
    return sorted(info.name for info in list_types(implements, with_abstract=with_abstract))


def test_counts() -> None:
    assert len(list_types()) == 36
    assert len(list_types(with_abstract=True)) == len(TYPES) == 48


@pytest.mark.parametrize(
    ("implements", "expected"),
    [
        ("user-creatable", CREATABLE),
        ("authz", ["authz-list", "authz-list-file", "authz-simple"]),
        ("chardev-ringbuf", ["chardev-memory", "chardev-ringbuf"]),
        ("event-loop-base", ["iothread", "main-loop"]),
        ("secret", ["secret"]),
        ("fw_cfg-data-generator", ["tls-cipher-suites"]),
        ("nope", []),
        ("", []),
    ],
)
def test_implements(implements: str, expected: list[str]) -> None:
    assert names(implements) == expected


def test_implements_object_leaves_out_interfaces() -> None:
    assert len(names("object")) == 36
    abstract = set(names("object", with_abstract=True)) - set(names("object"))
    assert abstract == {
        "authz", "chardev", "chardev-fd", "event-loop-base", "object", "pr-manager", "qio-channel",
        "secret_common", "tls-creds",
    }  # fmt: skip


def test_two_interfaces_are_no_interface() -> None:
    assert names("interface") == [name for name in CREATABLE if name != "tls-cipher-suites"]
    assert set(names("interface", with_abstract=True)) - set(CREATABLE) == {
        "event-loop-base", "fw_cfg-data-generator", "interface", "pr-manager", "secret_common",
        "user-creatable",
    }  # fmt: skip


def test_interfaces() -> None:
    assert [info.name for info in TYPES if is_interface(info)] == [
        "fw_cfg-data-generator", "interface", "user-creatable",
    ]  # fmt: skip


def test_every_creatable_type_has_its_class() -> None:
    assert user_creatable_names() == CREATABLE
    for name in CREATABLE:
        cls = find_creatable(name)
        assert cls is not None
        assert issubclass(cls, UserCreatable)
        assert name == cls.TYPE


@pytest.mark.parametrize(
    "name", ["secret_common", "chardev-null", "user-creatable", "authz-listfile", "rng-random"]
)
def test_others_cannot_be_made(name: str) -> None:
    assert find_creatable(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("object", "type:string"),
        ("authz", "type:string"),
        ("authz-list", "type:string policy:QAuthZListPolicy rules:QAuthZListRule"),
        ("authz-list-file", "type:string filename:string refresh:bool"),
        ("authz-simple", "type:string identity:string"),
        ("chardev-null", "type:string"),
        ("chardev-socket", "type:string connected:bool addr:SocketAddress"),
        ("event-loop-base",
         "type:string thread-pool-min:int aio-max-batch:int thread-pool-max:int"),
        ("pr-manager", "type:string"),
        ("pr-manager-helper", "type:string path:string"),
        ("qio-net-listener", "type:string"),
        ("secret_common",
         "type:string iv:string keyid:string loaded:bool format:QCryptoSecretFormat"),
        ("secret", "type:string iv:string keyid:string loaded:bool format:QCryptoSecretFormat"
         " file:string data:string"),
        ("secret_keyring", "type:string iv:string keyid:string loaded:bool"
         " format:QCryptoSecretFormat serial:int32_t"),
        ("thread-context", "type:string thread-id:int node-affinity:int cpu-affinity:int"),
        ("tls-cipher-suites", "type:string endpoint:QCryptoTLSCredsEndpoint dir:string"
         " verify-peer:bool priority:string"),
        ("tls-creds-anon", "type:string endpoint:QCryptoTLSCredsEndpoint dir:string"
         " verify-peer:bool priority:string loaded:bool"),
        ("tls-creds-psk", "type:string endpoint:QCryptoTLSCredsEndpoint dir:string"
         " verify-peer:bool priority:string username:string loaded:bool"),
        ("tls-creds-x509", "type:string endpoint:QCryptoTLSCredsEndpoint dir:string"
         " verify-peer:bool priority:string sanity-check:bool passwordid:string loaded:bool"),
    ],
)  # fmt: skip
def test_properties(name: str, expected: str) -> None:
    info = find_type(name)
    assert info is not None
    found = [f"{item.name}:{item.type}" for item in type_properties(info)]
    assert found == expected.split()

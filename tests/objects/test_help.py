# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The help for objects, as the C daemon prints it."""

from __future__ import annotations

import pytest

from qsd.objects.help import object_help


@pytest.mark.parametrize("kind", [None, "bogus", "rng-random", "", "authz-listfile"])
def test_list(kind: str | None) -> None:
    assert object_help(kind) == [
        "List of user creatable objects:",
        "  authz-list",
        "  authz-list-file",
        "  authz-simple",
        "  iothread",
        "  main-loop",
        "  pr-manager-helper",
        "  secret",
        "  secret_keyring",
        "  thread-context",
        "  throttle-group",
        "  tls-cipher-suites",
        "  tls-creds-anon",
        "  tls-creds-psk",
        "  tls-creds-x509",
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("secret", "data=<string> file=<string> format=<QCryptoSecretFormat> iv=<string>"
         " keyid=<string>"),
        ("secret_keyring", "format=<QCryptoSecretFormat> iv=<string> keyid=<string>"
         " serial=<int32_t>"),
        ("thread-context", "cpu-affinity=<int> node-affinity=<int>"),
        ("tls-creds-x509", "dir=<string> endpoint=<QCryptoTLSCredsEndpoint> passwordid=<string>"
         " priority=<string> sanity-check=<bool> verify-peer=<bool>"),
        ("event-loop-base", "aio-max-batch=<int> thread-pool-max=<int> thread-pool-min=<int>"),
        ("iothread", "aio-max-batch=<int> poll-grow=<int> poll-max-ns=<int> poll-shrink=<int>"
         " thread-pool-max=<int> thread-pool-min=<int>"),
        ("throttle-group", "limits=<ThrottleLimits>"
         " x-bps-read-max-length=<int> x-bps-read-max=<int> x-bps-read=<int>"
         " x-bps-total-max-length=<int> x-bps-total-max=<int> x-bps-total=<int>"
         " x-bps-write-max-length=<int> x-bps-write-max=<int> x-bps-write=<int>"
         " x-iops-read-max-length=<int> x-iops-read-max=<int> x-iops-read=<int> x-iops-size=<int>"
         " x-iops-total-max-length=<int> x-iops-total-max=<int> x-iops-total=<int>"
         " x-iops-write-max-length=<int> x-iops-write-max=<int> x-iops-write=<int>"),
    ],
)  # fmt: skip
def test_options(kind: str, options: str) -> None:
    assert object_help(kind) == [f"{kind} options:", *(f"  {item}" for item in options.split())]


@pytest.mark.parametrize("kind", ["container", "chardev-socket", "user-creatable", "authz"])
def test_no_options(kind: str) -> None:
    assert object_help(kind) == [f"There are no options for {kind}."]

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Socket addresses in both forms."""

from __future__ import annotations

import os
import socket

import pytest

from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.qapi.schema.common import String
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress, VsockSocketAddress


def test_both_forms_have_the_same_body() -> None:
    for part in (
        UnixSocketAddress(path="x"),
        InetSocketAddress(host="h", port="1"),
        VsockSocketAddress(cid="1", port="2"),
        String(str="3"),
    ):
        assert addresses.body(addresses.flat(part)) is part
        assert addresses.body(addresses.legacy(part)) is part


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (UnixSocketAddress(path="a/b"), "a/b"),
        (InetSocketAddress(host="::1", port="80"), "::1:80"),
        (VsockSocketAddress(cid="3", port="5"), "3:5"),
        (String(str="7"), "7"),
    ],
)
def test_shown(part: addresses.AddressBody, text: str) -> None:
    assert addresses.shown(addresses.flat(part)) == text


def test_abstract_names() -> None:
    assert addresses.unix_name(UnixSocketAddress(path="ab", abstract=True)) == b"\0ab"
    loose = addresses.unix_name(UnixSocketAddress(path="ab", abstract=True, tight=False))
    assert loose == b"\0ab" + b"\0" * 105


@pytest.mark.parametrize(("abstract", "limit"), [(None, 108), (True, 107)])
def test_path_length(abstract: bool | None, limit: int) -> None:
    addresses.unix_name(UnixSocketAddress(path="x" * limit, abstract=abstract))
    long = "x" * (limit + 1)
    with pytest.raises(QmpError) as caught:
        addresses.unix_name(UnixSocketAddress(path=long, abstract=abstract))
    assert caught.value.desc == f"UNIX socket path '{long}' is too long"
    assert caught.value.hint == f"Path must be less than {limit} bytes"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "family", "only_v6"),
    [
        (None, None, socket.AF_UNSPEC, False),
        (True, None, socket.AF_INET, False),
        (None, True, socket.AF_INET6, True),
        (True, True, socket.AF_INET6, False),
        (False, None, socket.AF_INET6, True),
        (None, False, socket.AF_INET, False),
        (True, False, socket.AF_INET, False),
        (False, True, socket.AF_INET6, True),
    ],
)
def test_family(ipv4: bool | None, ipv6: bool | None, family: int, only_v6: bool) -> None:
    address = InetSocketAddress(host="", port="", ipv4=ipv4, ipv6=ipv6)
    assert addresses.inet_family(address) == (family, only_v6)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            InetSocketAddress(host="127.0.0.1", port="1", ipv4=False, ipv6=False),
            "Cannot disable IPv4 and IPv6 at same time",
        ),
        (
            InetSocketAddress(host="127.0.0.1", port="5x"),
            "address resolution failed for 127.0.0.1:5x: Servname not supported for ai_socktype",
        ),
        (
            InetSocketAddress(host="::1", port="5", ipv4=True),
            "address resolution failed for ::1:5: Address family for hostname not supported",
        ),
        (
            InetSocketAddress(host="localhost", port="5", numeric=True),
            "address resolution failed for localhost:5: Name or service not known",
        ),
        (
            InetSocketAddress(host="a..b\0", port="5"),
            "address resolution failed for a..b\0:5: Name or service not known",
        ),
    ],
)
def test_resolver_errors(address: InetSocketAddress, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        addresses.resolve(address, passive=False)
    assert caught.value.desc == text


@pytest.mark.parametrize(
    ("cid", "port", "text"),
    [
        ("x", "1", "Failed to parse cid 'x'"),
        ("1", "x", "Failed to parse port 'x'"),
        ("4294967296", "1", "Failed to parse cid '4294967296'"),
        ("-1", "1", "Failed to parse cid '-1'"),
        ("1_0", "1", "Failed to parse cid '1_0'"),
    ],
)
def test_vsock_errors(cid: str, port: str, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        addresses.vsock_numbers(VsockSocketAddress(cid=cid, port=port))
    assert caught.value.desc == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "Unable to parse FD number abc"),
        ("", "Unable to parse FD number "),
        ("1x", "Unable to parse FD number 1x"),
        ("--1", "Unable to parse FD number --1"),
        ("-1", "File descriptor '-1' is not a socket"),
        ("99999", "File descriptor '99999' is not a socket"),
        ("99999999999999999999", "File descriptor '99999999999999999999' is not a socket"),
    ],
)
def test_descriptor_errors(text: str, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        addresses.take_fd(String(str=text), by_monitor=False)
    assert caught.value.desc == message


def test_descriptor_that_is_no_socket(tmp_path: os.PathLike[str]) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(QmpError, match="is not a socket"):
            addresses.take_fd(String(str=str(fd)), by_monitor=False)
    finally:
        os.close(fd)


def test_take_fd() -> None:
    ours, theirs = socket.socketpair()
    with theirs, addresses.take_fd(String(str=str(ours.detach())), by_monitor=False) as taken:
        taken.send(b"x")
        assert theirs.recv(1) == b"x"
    with pytest.raises(QmpError, match="only QEMU supports file descriptor passing"):
        addresses.take_fd(String(str="0"), by_monitor=True)

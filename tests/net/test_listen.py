# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Listening on every kind of address, and cleaning up."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.net.address import AddressBody
from qsd.net.connect import connect_unix
from qsd.net.listen import Listening, listen, open_listening
from qsd.qapi.schema.common import String
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress, VsockSocketAddress


def opened(part: AddressBody) -> Listening:
    return listen(addresses.legacy(part))


def reachable(listening: Listening) -> bool:
    listener = listening.sockets[0]
    with socket.socket(listener.family) as client:
        client.connect(listener.getsockname())
        listener.setblocking(True)
        accepted, _ = listener.accept()
        accepted.close()
    return True


def test_unix_replaces_what_is_there_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("in the way")
    listening = opened(UnixSocketAddress(path=str(path)))
    assert path.is_socket()
    assert reachable(listening)
    listening.close()
    assert not path.exists()
    listening.close()


def test_unix_removed_by_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = opened(UnixSocketAddress(path=str(path)))
    path.unlink()
    listening.close()


def test_empty_path_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    listening = opened(UnixSocketAddress(path=""))
    assert isinstance(listening.address.branch, UnixSocketAddress)
    assert Path(listening.address.branch.path).is_socket()
    assert reachable(listening)
    listening.close()
    assert list(tmp_path.iterdir()) == []


def test_longest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x" * addresses.SUN_PATH_MAX
    listening = opened(UnixSocketAddress(path=name))
    with socket.socket(socket.AF_UNIX) as client:
        connect_unix(client, name.encode())
    listening.close()
    assert not os.path.exists(name)


def test_longest_path_errors_have_an_errno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "nodir/".ljust(addresses.SUN_PATH_MAX, "x")
    with pytest.raises(QmpError, match=f"^Failed to bind socket to {name}: No such file"):
        opened(UnixSocketAddress(path=name))


@pytest.mark.parametrize("tight", [None, True, False])
def test_abstract(tight: bool | None) -> None:
    name = f"qsd-test-{os.getpid()}"
    listening = opened(UnixSocketAddress(path=name, abstract=True, tight=tight))
    assert listening.unlink_path is None
    assert reachable(listening)
    listening.close()


def test_unix_errors(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "x"
    with pytest.raises(QmpError) as caught:
        opened(UnixSocketAddress(path=str(missing)))
    assert caught.value.desc == f"Failed to bind socket to {missing}: No such file or directory"
    with pytest.raises(QmpError) as caught:
        opened(UnixSocketAddress(path=str(tmp_path)))
    assert caught.value.desc == f"Failed to unlink socket {tmp_path}: Is a directory"


def test_inet_reports_the_port_it_found() -> None:
    listening = opened(InetSocketAddress(host="127.0.0.1", port="0"))
    port = listening.sockets[0].getsockname()[1]
    assert listening.address.branch == InetSocketAddress(host="127.0.0.1", port=str(port))
    assert reachable(listening)
    listening.close()


def test_port_range_takes_the_next_free_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(QmpError) as caught:
            opened(InetSocketAddress(host="127.0.0.1", port=str(port)))
        assert caught.value.desc == "Failed to find an available port: Address already in use"
        listening = opened(InetSocketAddress(host="127.0.0.1", port=str(port), to=port + 50))
        assert listening.sockets[0].getsockname()[1] > port
        listening.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            InetSocketAddress(host="192.0.2.1", port="5555"),
            "Failed to bind socket: Cannot assign requested address",
        ),
        (InetSocketAddress(host="127.0.0.1", port="50", to=40), "Failed to create a socket"),
        (VsockSocketAddress(cid="x", port="1"), "Failed to parse cid 'x'"),
        (String(str="x"), "Unable to parse FD number x"),
    ],
)
def test_errors(address: AddressBody, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        opened(address)
    assert caught.value.desc == text


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_every_local_address_in_both_families() -> None:
    listening = opened(InetSocketAddress(host="", port="0"))
    assert {sock.family for sock in listening.sockets} == {socket.AF_INET, socket.AF_INET6}
    listening.close()
    with opened(InetSocketAddress(host="::", port="0", ipv6=True)).sockets[0] as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    with opened(InetSocketAddress(host="::", port="0")).sockets[0] as sock:
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_inherited_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "s"
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(str(path))
    listening = opened(String(str=str(inherited.detach())))
    assert listening.unlink_path == str(path)
    assert reachable(listening)
    listening.close()
    unbound = socket.socket(socket.AF_UNIX)
    with pytest.raises(QmpError, match="Failed to listen on fd socket: Invalid argument"):
        opened(String(str=str(unbound.detach())))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_without_holding_up_the_loop(host: str) -> None:
    listening = run(open_listening(addresses.flat(InetSocketAddress(host=host, port="0"))))
    assert reachable(listening)
    listening.close()

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS credentials: their files, and who is let in by them."""

from __future__ import annotations

import contextlib
import datetime as dt
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509 as x509_library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError, QsdError
from qsd.net.tls import TlsSocket
from qsd.objects.tls_creds import ServerTls, TlsCreds, TlsCredsX509, find_creds
from qsd.objects.tree import ObjectTree
from qsd.pki import make
from qsd.qapi.convert import from_json
from qsd.qapi.model import Struct
from qsd.qapi.schema.authz import AuthZSimpleProperties
from qsd.qapi.schema.crypto import (
    TlsCredsAnonProperties,
    TlsCredsPskProperties,
    TlsCredsX509Properties,
)
from tests.support.certificates import make_directories
from tests.support.tools import need


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tls-creds-x509", "Missing 'dir' property value"),
        ("tls-creds-psk", "Missing 'dir' property value"),
        ("tls-cipher-suites", "'priority' property is not set"),
    ],
)
def test_missing_members(kind: str, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        run(ObjectTree().create(kind, "t"))
    assert caught.value.desc == message


def test_loaded_is_read_only() -> None:
    options = TlsCredsX509Properties(dir="/x", loaded=True)
    with pytest.raises(QmpError, match=r"^Property 'tls-creds-x509.loaded' is not writable$"):
        run(ObjectTree().create("tls-creds-x509", "t", options))


def test_defaults() -> None:
    creds = TlsCredsX509(ObjectTree())
    shown = {item.name: creds.get_json(item.name) for item in creds.properties()}
    assert shown == {
        "type": "tls-creds-x509", "endpoint": "client", "dir": "", "verify-peer": True,
        "priority": "", "sanity-check": True, "passwordid": "", "loaded": False,
    }  # fmt: skip


def test_messages_of_users() -> None:
    tree = ObjectTree()
    run(tree.create("iothread", "io"))
    with pytest.raises(QmpError, match=r"^No TLS credentials with id 'zz'$"):
        tree.resolve("zz", TlsCreds)
    with pytest.raises(QmpError, match=r"^Object with id 'io' is not TLS credentials$"):
        tree.resolve("io", TlsCreds)


async def meet(server: ServerTls, client: TlsCreds, hostname: str | None) -> TlsSocket:
    """Let a client in; return the server's side."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    tasks = TaskOwner("test", lambda _name, _exc: None)
    try:

        async def connect() -> None:
            await client.connector(hostname)(theirs)

        other = tasks.spawn(connect(), "client")
        accepted = await server.accept(ours)
        await other
        return accepted
    finally:
        await tasks.close()
        theirs.close()
        ours.close()


@pytest.mark.parametrize("priority", ["NORMAL", "NORMAL:-VERS-TLS1.3", "SECURE128"])
def test_gnutls_server(tmp_path: Path, priority: str) -> None:
    """What a client of ours says arrives at GnuTLS and comes back, whatever its length."""
    need("gnutls-serv")
    server_dir, client_dir = make_directories(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (
        "gnutls-serv --echo --quiet --require-client-cert --x509cafile ca-cert.pem"
        " --x509certfile server-cert.pem --x509keyfile server-key.pem"
        f" --port {port} --priority {priority}"
    )

    async def talk(sock: socket.socket) -> None:
        tree = ObjectTree()
        await tree.create("tls-creds-x509", "c", x509("client", client_dir, priority=priority))
        stream = await find_creds(tree, "c", "client").connector("localhost")(sock)
        buffer = memoryview(bytearray(1 << 16))
        for size in (1, 100, 5000):
            line = b"x" * size + b"\n"
            stream.send(line)
            echo = b""
            while len(echo) < len(line):
                assert select.select([sock], [], [], 10)[0]
                with contextlib.suppress(BlockingIOError):
                    echo += bytes(buffer[: stream.recv_into(buffer)])
            assert echo == line
        stream.close()

    with subprocess.Popen(
        command.split(), cwd=server_dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as server:
        try:
            with connect_when_there(port) as sock:
                sock.setblocking(False)
                run(talk(sock))
        finally:
            server.kill()


def connect_when_there(port: int) -> socket.socket:
    """Connect to a server that has just been started."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


async def both(tree: ObjectTree, kind: str, server: Struct, client: Struct) -> None:
    await tree.create(kind, "s", server)
    await tree.create(kind, "c", client)


def x509(endpoint: str, place: str, **more: object) -> TlsCredsX509Properties:
    return from_json(TlsCredsX509Properties, {"endpoint": endpoint, "dir": place, **more})


def test_certificates_and_authorization(tmp_path: Path) -> None:
    server_dir, client_dir = make_directories(tmp_path)

    async def main() -> None:
        tree = ObjectTree()
        await both(tree, "tls-creds-x509", x509("server", server_dir), x509("client", client_dir))
        server, client = find_creds(tree, "s", "server"), find_creds(tree, "c", "client")
        await meet(ServerTls(tree, server, None), client, "localhost")
        with pytest.raises(QmpError, match=r"^Cannot find QAuthZ object ID z$"):
            await meet(ServerTls(tree, server, "z"), client, "localhost")
        with pytest.raises(QmpError, match=r"^Object 's' is not a QAuthZ subclass$"):
            await meet(ServerTls(tree, server, "s"), client, "localhost")
        await tree.create("authz-simple", "z", AuthZSimpleProperties(identity="CN=bob"))
        with pytest.raises(QmpError, match=r"^TLS x509 authz check for CN=alice is denied$"):
            await meet(ServerTls(tree, server, "z"), client, "localhost")
        await tree.create("authz-simple", "y", AuthZSimpleProperties(identity="CN=alice"))
        await meet(ServerTls(tree, server, "y"), client, "localhost")
        with pytest.raises((QsdError, OSError)):
            await meet(ServerTls(tree, server, None), client, "elsewhere")
        with pytest.raises(QmpError, match=r"^Certificate does not match the hostname $"):
            client.session(hostname="")

    run(main())


def revoke(place: Path, certificate: Path, target: Path, *, age: int = 1) -> None:
    """Make a revocation list of the authority, so many days old, with one certificate on it."""
    authority = x509_library.load_pem_x509_certificate((place / "ca" / "ca-cert.pem").read_bytes())
    key = load_pem_private_key((place / "ca" / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    serial = x509_library.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC) - (age - 1) * day
    entry = x509_library.RevokedCertificateBuilder(serial, now - day).build()
    issued = x509_library.CertificateRevocationListBuilder(
        authority.subject, now - day, now + day, revoked_certificates=[entry]
    ).sign(key, hashes.SHA256())
    target.write_bytes(issued.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("age", [1, 30])
def test_a_server_turns_away_who_was_revoked(age: int, tmp_path: Path) -> None:
    """Also when the list should have been replaced by a newer one long ago."""
    make(str(tmp_path), ["localhost"], ["alice", "bob"], 2)
    target = tmp_path / "server/ca-crl.pem"
    revoke(tmp_path, tmp_path / "client-alice/client-cert.pem", target, age=age)

    async def main() -> None:
        tree = ObjectTree()
        await tree.create("tls-creds-x509", "s", x509("server", str(tmp_path / "server")))
        server = ServerTls(tree, find_creds(tree, "s", "server"), None)
        for name in ("alice", "bob"):
            place = str(tmp_path / f"client-{name}")
            await tree.create("tls-creds-x509", name, x509("client", place))
        await meet(server, find_creds(tree, "bob", "client"), "localhost")
        with pytest.raises(QmpError, match=r"^The certificate has been revoked$"):
            await meet(server, find_creds(tree, "alice", "client"), "localhost")

    run(main())


def test_a_list_of_another_authority_says_nothing(tmp_path: Path) -> None:
    server_dir, client_dir = make_directories(tmp_path / "one")
    make_directories(tmp_path / "two")
    (tmp_path / "two/ca/ca-cert.pem").write_bytes(other_authority(tmp_path / "two/ca"))
    mine = Path(client_dir, "client-cert.pem")
    revoke(tmp_path / "two", mine, Path(server_dir, "ca-crl.pem"))

    async def main() -> None:
        tree = ObjectTree()
        await both(tree, "tls-creds-x509", x509("server", server_dir), x509("client", client_dir))
        server = ServerTls(tree, find_creds(tree, "s", "server"), None)
        await meet(server, find_creds(tree, "c", "client"), "localhost")

    run(main())


def other_authority(place: Path) -> bytes:
    """Return an authority's certificate with a name of its own, for the key in a directory."""
    key = load_pem_private_key((place / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate("other", key).public_bytes(Encoding.PEM)


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: Path | None = None, *, purpose: str = ""
) -> x509_library.Certificate:
    """Make a certificate, of an authority in a directory or of its own; a name may be empty."""
    subject = x509_library.Name(
        [x509_library.NameAttribute(x509_library.NameOID.COMMON_NAME, name)] if name else []
    )
    signer, issued_by = key, subject
    if issuer is not None:
        loaded = load_pem_private_key((issuer / "ca-key.pem").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
        data = (issuer / "ca-cert.pem").read_bytes()
        issued_by = x509_library.load_pem_x509_certificate(data).subject
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    builder = x509_library.CertificateBuilder(
        issued_by, subject, key.public_key(), x509_library.random_serial_number(), now - day,
        now + day,
    )  # fmt: skip
    if purpose:
        usage = x509_library.ExtendedKeyUsage([x509_library.ObjectIdentifier(purpose)])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.mark.parametrize(
    ("name", "purpose", "refusal"),
    [
        # A client that shows a server's certificate; for the C daemon's library that is fine.
        ("bob", ExtendedKeyUsageOID.SERVER_AUTH.dotted_string, None),
        ("", "", "Cannot get client distinguished name: The requested data were not available."),
    ],
)
def test_unusual_certificates(name: str, purpose: str, refusal: str | None, tmp_path: Path) -> None:
    server_dir, client_dir = make_directories(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    shown = certificate(name, key, tmp_path / "ca", purpose=purpose)
    Path(client_dir, "client-cert.pem").write_bytes(shown.public_bytes(Encoding.PEM))
    Path(client_dir, "client-key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )

    async def main() -> None:
        tree = ObjectTree()
        await both(tree, "tls-creds-x509", x509("server", server_dir), x509("client", client_dir))
        server = ServerTls(tree, find_creds(tree, "s", "server"), None)
        if refusal is None:
            await meet(server, find_creds(tree, "c", "client"), "localhost")
        else:
            with pytest.raises(QmpError) as caught:
                await meet(server, find_creds(tree, "c", "client"), "localhost")
            assert caught.value.desc == refusal

    run(main())


def test_a_client_takes_no_notice_of_a_revocation_list(tmp_path: Path) -> None:
    """As the C daemon: only for servers the list is read."""
    server_dir, client_dir = make_directories(tmp_path)
    revoke(tmp_path, Path(server_dir, "server-cert.pem"), Path(client_dir, "ca-crl.pem"))

    async def main() -> None:
        tree = ObjectTree()
        await both(tree, "tls-creds-x509", x509("server", server_dir), x509("client", client_dir))
        server = ServerTls(tree, find_creds(tree, "s", "server"), None)
        await meet(server, find_creds(tree, "c", "client"), "localhost")

    run(main())


def test_only_the_authority_is_needed_by_a_client(tmp_path: Path) -> None:
    server_dir, client_dir = make_directories(tmp_path)
    for name in ("client-cert.pem", "client-key.pem"):
        Path(client_dir, name).unlink()

    async def main() -> None:
        tree = ObjectTree()
        await both(tree, "tls-creds-x509", x509("server", server_dir), x509("client", client_dir))
        server, client = find_creds(tree, "s", "server"), find_creds(tree, "c", "client")
        with pytest.raises(QmpError, match=r"^Verify failed: No certificate was found\.$"):
            await meet(ServerTls(tree, server, None), client, "localhost")
        server.verify_peer = False
        await meet(ServerTls(tree, server, None), client, "localhost")
        # Who is not known cannot be allowed.
        await tree.create("authz-simple", "z", AuthZSimpleProperties(identity="CN=alice"))
        with pytest.raises(QmpError, match=r"^TLS x509 authz check for .* is denied$"):
            await meet(ServerTls(tree, server, "z"), client, "localhost")

    run(main())


def test_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.psk").write_text(
        "# comment\nalice:00112233445566778899aabbccddeeff\nodd:abc\nshort:001122\n"
    )

    async def main() -> None:
        tree = ObjectTree()
        server = TlsCredsPskProperties(dir=str(tmp_path), endpoint="server")
        client = TlsCredsPskProperties(dir=str(tmp_path), endpoint="client", username="alice")
        await both(tree, "tls-creds-psk", server, client)
        await meet(
            ServerTls(tree, find_creds(tree, "s", "server"), None),
            find_creds(tree, "c", "client"),
            None,
        )
        with pytest.raises(QmpError, match=r"^Username qemu not found in PSK file "):
            await tree.create("tls-creds-psk", "d", TlsCredsPskProperties(dir=str(tmp_path)))
        for name, message in (
            ("odd", "Cannot set PSK client credentials: Error in parsing."),
            ("short", "Cannot set PSK client credentials: The request is invalid."),
            ("", f"Username  not found in PSK file {tmp_path}/keys.psk"),
        ):
            client = TlsCredsPskProperties(dir=str(tmp_path), username=name)
            with pytest.raises(QmpError) as caught:
                await tree.create("tls-creds-psk", "d", client)
            assert caught.value.desc == message

    run(main())


def test_nobody_knows_whom() -> None:
    async def main() -> None:
        tree = ObjectTree()
        await both(
            tree,
            "tls-creds-anon",
            TlsCredsAnonProperties(endpoint="server"),
            TlsCredsAnonProperties(endpoint="client"),
        )
        await meet(
            ServerTls(tree, find_creds(tree, "s", "server"), None),
            find_creds(tree, "c", "client"),
            None,
        )

    run(main())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ca-cert.pem", "Unable to import CA certificate list {}/ca-cert.pem"),
        (
            "server-cert.pem",
            "Unable to import server certificate {}/server-cert.pem: "
            "Base64 unexpected header error.",
        ),
        (
            "server-key.pem",
            "Cannot load certificate '{0}/server-cert.pem' & key '{0}/server-key.pem': "
            "The requested data were not available.",
        ),
        ("ca-crl.pem", "Cannot load CRL '{}/ca-crl.pem': Base64 decoding error."),
        (
            "dh-params.pem",
            "Unable to load DH parameters from {}/dh-params.pem: Base64 unexpected header error.",
        ),
    ],
)
def test_damaged_files(name: str, message: str, tmp_path: Path) -> None:
    place, _ = make_directories(tmp_path)
    Path(place, name).write_text("garbage\n")
    with pytest.raises(QmpError) as caught:
        run(ObjectTree().create("tls-creds-x509", "t", x509("server", place)))
    assert caught.value.desc == message.format(place)


def test_an_authority_is_not_needed_where_nobody_looks(tmp_path: Path) -> None:
    """As the original: without the check, a file without certificates is a list of none."""
    place, _ = make_directories(tmp_path)
    Path(place, "ca-cert.pem").write_text("garbage\n")
    options = from_json(
        TlsCredsX509Properties, {"endpoint": "server", "dir": place, "sanity-check": False}
    )
    run(ObjectTree().create("tls-creds-x509", "t", options))
    damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    Path(place, "ca-cert.pem").write_text(damaged)
    with pytest.raises(QmpError) as caught:
        run(ObjectTree().create("tls-creds-x509", "t", options))
    assert caught.value.desc == (
        f"Cannot load CA certificate '{place}/ca-cert.pem': ASN1 parser: Error in TAG."
    )


def test_key_of_another(tmp_path: Path) -> None:
    place, other = make_directories(tmp_path)
    shutil.copy(f"{other}/client-key.pem", f"{place}/server-key.pem")
    with pytest.raises(QmpError, match="The certificate and the given key do not match"):
        run(ObjectTree().create("tls-creds-x509", "t", x509("server", place)))


def test_wrong_endpoint(tmp_path: Path) -> None:
    place, _ = make_directories(tmp_path)

    async def main() -> None:
        tree = ObjectTree()
        await tree.create("tls-creds-x509", "s", x509("server", place))
        with pytest.raises(QmpError, match=r"^Expected TLS credentials for a client endpoint$"):
            find_creds(tree, "s", "client")

    run(main())

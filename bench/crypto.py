# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of encryption: LUKS volumes, encrypted qcow2 images, NBD over TLS.

An image is named after what encrypts it: ``aes-256-xts.luks``, ``aes-256-xts.luks.qcow2``,
``aes.qcow2`` (the legacy way).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

_SECRET = "secret,id=s,data=opensesame"
#: Bytes of the image that goes over TLS.
_TLS_SIZE = 256 << 20
_URI = "nbd+unix:///x?socket=crypto.sock"


def _split(image: str) -> tuple[str, list[str], list[str]]:
    """Return format, options for qemu-img, and options for --blockdev of an image's name."""
    if image.endswith(".luks"):
        cipher, _, mode = image.removesuffix(".luks").rpartition("-")
        create = [f"cipher-alg={cipher}", f"cipher-mode={mode}", "key-secret=s", "iter-time=10"]
        return "luks", create, ["key-secret=s"]
    if image == "aes.qcow2":
        create = ["encrypt.format=aes", "encrypt.key-secret=s"]
        return "qcow2", create, ["encrypt.format=aes", "encrypt.key-secret=s"]
    cipher, _, mode = image.removesuffix(".luks.qcow2").rpartition("-")
    create = [
        "encrypt.format=luks",
        f"encrypt.cipher-alg={cipher}",
        f"encrypt.cipher-mode={mode}",
        "encrypt.key-secret=s",
        "encrypt.iter-time=10",
    ]
    return "qcow2", create, ["encrypt.format=luks", "encrypt.key-secret=s"]


def _ensure(folder: Path, image: str, size: str) -> Path:
    """Make an encrypted image, full of data, unless it exists."""
    path = folder / image
    if path.exists():
        return path
    fmt, create, opening = _split(image)
    words = ["qemu-img", "create", "-q", "--object", _SECRET, "-f", fmt]
    subprocess.run([*words, "-o", ",".join(create), image, size], cwd=folder, check=True)
    node = ",".join([f"driver={fmt}", f"file.filename={image}", *opening])
    subprocess.run(
        ["qemu-io", "--object", _SECRET, "--image-opts", "-c", f"write -P 7 0 {size}", node],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path


def through(image: str, pattern: str, block: str, depth: int, size: str = images.SIZE) -> Run:
    """Make a workload of fio on an encrypted image."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(_ensure(folder, image, size))
        (folder / "crypto.sock").unlink(missing_ok=True)
        fmt, _, opening = _split(image)
        node = [f"driver={fmt},node-name=top,file=file", *opening]
        with Daemon(
            side,
            folder,
            *("--object", _SECRET),
            *("--blockdev", f"file,node-name=file,filename={image}"),
            *("--blockdev", ",".join(node)),
            *("--nbd-server", "addr.type=unix,addr.path=crypto.sock"),
            *("--export", "nbd,id=e,node-name=top,name=x,writable=on"),
        ) as daemon:
            return metered(
                daemon,
                lambda: clients.fio(folder, _URI, pattern, block, depth, seconds=seconds),
            )

    return run


def _certificates(folder: Path) -> Path:
    """Make a CA with a server's and a client's certificate unless they exist."""
    path = folder / "pki"
    if not path.exists():
        subprocess.run(
            [sys.executable, "-m", "qsd", "pki", str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return path


def over_tls(request: int, *, writing: bool) -> Run:
    """Make a workload of nbdcopy on a plain image, over TLS; `request` in bytes.

    fio does not let its NBD library look at certificates.
    """

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        path = folder / "tls.raw"
        if not path.exists():
            path.touch()
            os.truncate(path, _TLS_SIZE)
            subprocess.run(
                ["qemu-io", "-f", "raw", "-c", f"write -P 7 0 {_TLS_SIZE}", path.name],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        clients.warm(path)
        pki = _certificates(folder)
        with Daemon(
            side,
            folder,
            *("--object", f"tls-creds-x509,id=t,endpoint=server,dir={pki}/server"),
            *("--blockdev", "file,node-name=top,filename=tls.raw"),
            *("--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=10898,tls-creds=t"),
            *("--export", "nbd,id=e,node-name=top,name=x,writable=on"),
        ) as daemon:
            uri = f"nbds://localhost:10898/x?tls-certificates={pki}/client"
            words = ["nbdcopy", "--connections=1", f"--request-size={request}", "--requests=32"]
            words += [path.name, uri] if writing else [uri, "null:"]

            def load() -> clients.Load:
                copied = clients.timed(folder, *words)
                count = _TLS_SIZE // request
                return clients.Load(copied.rate * count, count)

            return metered(daemon, load)

    return run


_LUKS = "aes-256-xts.luks"
_QCOW2 = "aes-256-xts.luks.qcow2"
#: (name, image, pattern, block, depth, aim)
_ROWS: list[tuple[str, str, str, str, int, float]] = [
    ("luks 4k random read QD1", _LUKS, "randread", "4k", 1, 1),
    ("luks 4k random read QD32", _LUKS, "randread", "4k", 32, 1),
    ("luks 4k random write QD32", _LUKS, "randwrite", "4k", 32, 1),
    ("luks 64k random read QD16", _LUKS, "randread", "64k", 16, 2),
    ("luks 64k random write QD16", _LUKS, "randwrite", "64k", 16, 2),
    ("luks 1M sequential read QD8", _LUKS, "read", "1M", 8, 3),
    ("luks 1M sequential write QD8", _LUKS, "write", "1M", 8, 3),
    ("luks qcow2 4k random read QD32", _QCOW2, "randread", "4k", 32, 1),
    ("luks qcow2 4k random write QD32", _QCOW2, "randwrite", "4k", 32, 1),
    ("luks qcow2 64k random read QD16", _QCOW2, "randread", "64k", 16, 2),
    ("luks qcow2 64k random write QD16", _QCOW2, "randwrite", "64k", 16, 2),
    ("luks qcow2 1M sequential read QD8", _QCOW2, "read", "1M", 8, 3),
    ("luks qcow2 1M sequential write QD8", _QCOW2, "write", "1M", 8, 3),
    ("aes qcow2 64k random read QD16", "aes.qcow2", "randread", "64k", 16, 1),
    ("aes qcow2 64k random write QD16", "aes.qcow2", "randwrite", "64k", 16, 0),
]
#: Ciphers and modes beyond the usual, on smaller images.
_OTHERS = ("aes-256-cbc", "serpent-256-xts", "twofish-256-xts", "cast5-128-cbc")
_OTHER_SIZE = "64M"


def rows() -> list[tuple[str, Run, float]]:
    """Return (name, workload, aim) of all."""
    listed = [
        (name, through(image, pattern, block, depth), aim)
        for name, image, pattern, block, depth, aim in _ROWS
    ]
    for cipher in _OTHERS:
        for verb in ("read", "write"):
            run = through(f"{cipher}.luks", verb, "1M", 4, _OTHER_SIZE)
            listed.append((f"luks {cipher} 1M sequential {verb} QD4", run, 1))
    for name, request in (("4k", 4096), ("1M", 1 << 20)):
        for verb in ("read", "write"):
            run = over_tls(request, writing=verb == "write")
            listed.append((f"tls {name} sequential {verb} QD32", run, 1))
    return listed

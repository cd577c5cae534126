# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A real virtual machine reads its disk through our exports.

There is no operating system: a boot sector lets the BIOS read 64 sectors (int 13h, AH=42h) and
writes the sum of their bytes to the serial line.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.guest import machine
from iotests.harness.tools import check_image, need, run

pytestmark = [pytest.mark.slow, pytest.mark.interop]

#: Sectors behind the boot sector that the program sums up.
SECTORS = 64
#: Machine code for address 0x7c00; the disk address packet follows it.
CODE = bytes.fromhex(
    "fc"  # cld
    "31c08ed88ec0"  # xor ax,ax; mov ds,ax; mov es,ax
    "be0000"  # mov si,packet
    "b442cd13"  # mov ah,42h; int 13h
    "722a"  # jc halt
    "be0080b9008031db"  # mov si,8000h; mov cx,8000h; xor bx,bx
    "ac30e401c3e2f9"  # sum: lodsb; xor ah,ah; add bx,ax; loop sum
    "baf803b90400"  # mov dx,3f8h; mov cx,4
    "c1c30488d8240f04303c3976020407eee2ee"  # digit: the next four bits, as a character
    "b00aee"  # mov al,10; out dx,al
    "f4ebfd"  # halt: hlt; jmp halt
)


def boot_disk(payload: bytes) -> bytes:
    """Return a disk that sums up `payload`."""
    place = 0x7C00 + len(CODE)
    code = CODE[:8] + place.to_bytes(2, "little") + CODE[10:]
    packet = bytes([16, 0, SECTORS, 0]) + bytes([0x00, 0x80, 0, 0]) + (1).to_bytes(8, "little")
    return (code + packet).ljust(510, b"\0") + b"\x55\xaa" + payload


EXPORTS = {
    "vhost-user": "vhost-user-blk,id=x,node-name=node,writable=on,num-queues=2,"
    "addr.type=unix,addr.path=x.sock",
    "nbd": "nbd,id=x,node-name=node,name=x,writable=on",
}
DEVICES = {
    "vhost-user": [
        *("-chardev", "socket,id=c,path=x.sock"),
        *("-device", "vhost-user-blk-pci,chardev=c,num-queues=2,bootindex=0"),
    ],
    "nbd": [
        *("-blockdev", "nbd,node-name=n,server.type=unix,server.path=nbd.sock,export=x"),
        *("-device", "virtio-blk-pci,drive=n,bootindex=0"),
    ],
}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_the_bios_reads_the_disk(tmp_path: Path, daemon_kind: str, kind: str, fmt: str) -> None:
    need("qemu-system-x86_64", "qemu-img")
    payload = random.Random(9).randbytes(SECTORS * 512)
    (tmp_path / "source").write_bytes(boot_disk(payload).ljust(1 << 20, b"\0"))
    run(tmp_path, "qemu-img", "convert", "-f", "raw", "-O", fmt, "source", "image")
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "file,node-name=file,filename=image"),
        *("--blockdev", f"{fmt},node-name=node,file=file"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", EXPORTS[kind]),
    ) as daemon:
        for _ in range(2):  # a front end that comes again is served again
            with machine(tmp_path, *DEVICES[kind]) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"%04X\n" % (sum(payload) & 0xFFFF)
        assert daemon.quit() == 0
    if fmt == "qcow2":
        check_image(tmp_path, "image")

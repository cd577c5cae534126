# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Virtual machines: QEMU with nothing but a disk from our exports, and a small Linux for it.

The Linux is Debian's cloud kernel with an initramfs made here: busybox, the modules for a virtio
disk, ``guest_init.sh`` as the first process, and what a test adds.  ``scripts/guest`` fetches the
parts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Modules in the order in which they are loaded.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
)
#: Megabytes; shared with the vhost-user back end, so it is given to the machine as an object.
MEMORY = 256


def linux_parts() -> Path:
    """Return the folder with kernel, modules and busybox; skip the running test without them."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("QSD_GUEST") or Path(cache) / "qsd" / "guest")
    if not (folder / "vmlinuz").exists():
        pytest.skip(f"no kernel in {folder} (scripts/guest fetches it where it may)")
    return folder


def initramfs(parts: Path, programs: list[str], files: dict[str, bytes]) -> bytes:
    """Return the archive that the kernel unpacks as its root file system.

    Args:
        parts: As `linux_parts` returned it.
        programs: Programs of this machine, copied with their shared libraries.
        files: More files, by path.
    """
    archive = _Archive()
    archive.add("dev/console", _CHARACTER_DEVICE | 0o600, device=(5, 1))
    archive.add("bin/busybox", _FILE | 0o755, (parts / "busybox").read_bytes())
    for name in MODULES:
        archive.add(f"lib/{name}.ko", _FILE | 0o644, (parts / f"modules/{name}.ko").read_bytes())
    for path in dict.fromkeys(path for program in programs for path in _with_libraries(program)):
        archive.add(path.removeprefix("/"), _FILE | 0o755, Path(path).read_bytes())
    init = Path(__file__).with_name("guest_init.sh")
    archive.add("init", _FILE | 0o755, init.read_bytes())
    for name, content in files.items():
        archive.add(name, _FILE | 0o644, content)
    return archive.finish()


def _with_libraries(program: str) -> list[str]:
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [program, *re.findall(r"(/\S+) \(0x", listing)]


_FILE = 0o100000
_FOLDER = 0o040000
_CHARACTER_DEVICE = 0o020000


class _Archive:
    """A cpio archive as the kernel reads it (its documentation: "initramfs buffer format")."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._known: set[str] = set()

    def add(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add an entry and the folders above it that are not there yet."""
        if path in self._known:
            return
        above = path.rpartition("/")[0]
        if above:
            self.add(above, _FOLDER | 0o755)
        self._known.add(path)
        self._entry(path, mode, data, device)

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        name = path.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize chksum
        fields = (len(self._known), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        self._bytes += bytes(-len(self._bytes) % 4)
        self._bytes += data
        self._bytes += bytes(-len(self._bytes) % 4)

    def finish(self) -> bytes:
        """Return the archive with its end mark."""
        self._entry("TRAILER!!!", 0, b"", (0, 0))
        return bytes(self._bytes)


@contextmanager
def machine(folder: Path, *arguments: str, seconds: int = 240) -> Iterator[subprocess.Popen[bytes]]:
    """Run a machine without anything but what is asked for; its serial line is its output.

    It has two processors, and is ended after so many seconds at the latest.
    """
    process = subprocess.Popen(
        [
            *("timeout", str(seconds), "qemu-system-x86_64", "-machine", "q35"),
            # One thread for both processors: with two, a processor that idles may miss its timer.
            *("-accel", "tcg,thread=single"),
            *("-smp", "2", "-m", str(MEMORY), "-nodefaults", "-no-reboot", "-display", "none"),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY}M,share=on"),
            *("-numa", "node,memdev=mem", "-serial", "stdio"),
            *arguments,
        ],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def linux() -> list[str]:
    """Return the arguments for a machine that boots ``initrd`` of its folder."""
    return [
        *("-kernel", str(linux_parts() / "vmlinuz"), "-initrd", "initrd"),
        # A panic ends the machine.  On a busy host the emulated timer fails the kernel's check.
        *("-append", "console=ttyS0 quiet panic=-1 no_timer_check"),
    ]

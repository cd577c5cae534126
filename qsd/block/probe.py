# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Guessing the format of an image from its first bytes.

Used only where an image names a backing file without its format; users name theirs.  The magic
numbers come from the formats' own public specifications.
"""

from __future__ import annotations

#: Bytes; how much of an image a guess looks at.
PROBE_SIZE = 2048

#: (offset, magic, driver).
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb\0\0\0\x02", "qcow2"),
    (0, b"QFI\xfb\0\0\0\x03", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe\0\x01", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
)


def probe(head: bytes) -> str:
    """Return the driver that the first bytes of an image suggest; "raw" if nothing does."""
    for offset, magic, driver in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return driver
    return "raw"

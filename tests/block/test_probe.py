# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qsd.block.probe import PROBE_SIZE, probe


@pytest.mark.parametrize(
    ("head", "driver"),
    [
        (b"", "raw"),
        (bytes(PROBE_SIZE), "raw"),
        (b"QFI\xfb\0\0\0\x01", "qcow"),
        (b"QFI\xfb\0\0\0\x02", "qcow2"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"QFI\xfb\0\0\0\x04", "raw"),
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile\n", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"LUKS\xba\xbe\0\x01", "luks"),
        (b"WithoutFreeSpace", "parallels"),
    ],
)
def test_magic(head: bytes, driver: str) -> None:
    assert probe(head) == driver


@pytest.mark.interop
@pytest.mark.parametrize("fmt", ["qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels"])
def test_images_made_by_qemu_img(fmt: str, tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed (scripts/test installs it where it may)")
    image = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, image, "4M"], check=True)
    with image.open("rb") as stream:
        assert probe(stream.read(PROBE_SIZE)) == fmt

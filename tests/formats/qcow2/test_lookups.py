# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Where data lies, by tables in memory; for plain images, the driver's tests look at that."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import DATA
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.lookups import EncryptedLookups
from tests.formats.secrets import SecretRig

LENGTH = 2 << 20


@pytest.mark.parametrize("extended", [False, True])
def test_encrypted(extended: bool, tmp_path: Path) -> None:
    """Encrypted clusters are found where the slow way finds them, and by nobody else."""
    file = {"driver": "file", "filename": str(tmp_path / "q")}
    (tmp_path / "q").touch()
    pick = random.Random(3)

    async def main() -> None:
        async with SecretRig() as rig:
            encrypt = {"format": "luks", "key-secret": "s", "iter-time": 0}
            size = 16384 if extended else 4096
            await rig.create(
                "qcow2", file=file, size=LENGTH, encrypt=encrypt, cluster_size=size,
                extended_l2=extended,
            )  # fmt: skip
            opening = {"format": "luks", "key-secret": "s"}
            node = await rig.add(driver="qcow2", node_name="q", encrypt=opening, file=file)
            for _ in range(40):
                start = pick.randrange(LENGTH // 512 - 64) * 512
                await node.write(start, memoryview(os.urandom(512 * pick.randrange(1, 64))))
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            lookups = EncryptedLookups(driver, driver.image.l2.hot)
            hits = 0
            for _ in range(1000):
                offset = pick.randrange(LENGTH // 512 - 24) * 512
                length = 512 * pick.randrange(1, 24)
                assert driver.locate_data_nowait(offset, length) == -1
                assert driver.locate_writable_nowait(offset, length) == -1
                found = lookups.locate_data_nowait(offset, length)
                writable = lookups.locate_writable_nowait(offset, length)
                mapping = await driver.map(offset, length)
                if found >= 0:
                    hits += 1
                    assert (mapping.kind, mapping.host_offset) == (DATA, found)
                    assert mapping.length == length
                if writable >= 0:
                    assert writable == found
                    assert mapping.writable
            assert hits > 100

    run(main())

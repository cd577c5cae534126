# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The configuration space of a virtio disk (virtio 1.2, 5.2.4)."""

from __future__ import annotations

import struct

from qsd.wire.virtio import blk


def test_config() -> None:
    config = blk.pack_config(1 << 20, 4096, 3, 126, writeback=True)
    assert len(config) == blk.CONFIG_SIZE == 60
    assert struct.unpack_from("<QII", config) == (2048, 4 << 20, 126)
    assert struct.unpack_from("<I", config, 20) == (4096,)
    assert config[blk.WRITEBACK_OFFSET] == 1
    assert struct.unpack_from("<HIIIIIB", config, 34) == (3, 32768, 1, 8, 32768, 1, 1)
    assert blk.pack_config(1 << 20, 512, 1, 126, writeback=False)[blk.WRITEBACK_OFFSET] == 0

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a client misses when its server goes away, as recorded from the C daemon."""

from __future__ import annotations

import struct

import pytest

from qsd.wire.nbd import awaited
from qsd.wire.nbd import messages as nbd


def header(kind: int, length: int) -> bytes:
    return nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, kind, length)


EXPORT = header(nbd.REP_INFO, 12) + struct.pack(">HQH", 0, 1 << 20, 1)
BLOCKS = header(nbd.REP_INFO, 14) + struct.pack(">HIII", 3, 1, 4096, 65536)
OTHER = header(nbd.REP_INFO, 20) + b"\0\1abc"
CONTEXT = header(nbd.REP_META_CONTEXT, 19) + b"\0\0\0\5base"


@pytest.mark.parametrize(
    ("buffer", "missing"),
    [
        (b"", "option reply"),
        (EXPORT[:19], "option reply"),
        (EXPORT[:21], "info type"),
        (EXPORT[:22], "info size"),
        (EXPORT[:30], "info flags"),
        (BLOCKS[:24], "info minimum block size"),
        (BLOCKS[:26], "info preferred block size"),
        (BLOCKS[:33], "info maximum block size"),
        (OTHER, "info payload"),
        (CONTEXT[:22], "context id"),
        (CONTEXT, "context name"),
        (header(nbd.REP_ERR_UNKNOWN, 9), "option error 2147483654 (export unknown) message"),
        (header(nbd.REP_FLAG_ERROR | 99, 9), "option error 2147483747 (<unknown>) message"),
    ],
)
def test_replies_to_options(buffer: bytes, missing: str) -> None:
    assert awaited.reply_field(buffer) == missing
    assert awaited.reply_field(bytearray(buffer)) == missing


def test_fields() -> None:
    found = [awaited.field(awaited.GREETING, have) for have in (0, 7, 8, 15, 16, 17)]
    assert found == ["initial magic"] * 2 + ["server magic"] * 2 + ["server flags"] * 2
    found = [awaited.field(awaited.EXPORT_NAME, have) for have in (7, 8, 10, 133)]
    assert found == ["export length", "export flags", "reserved block", "reserved block"]
    assert awaited.field(awaited.OLDSTYLE, 11) == "export flags"

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Events of nodes: errors, corruption, thresholds, quorum (QMP reference, "Block core")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import Event

if TYPE_CHECKING:
    from typing import ClassVar

    from qsd.qapi.schema.common import IoOperationType


BlockErrorAction: TypeAlias = Literal["ignore", "report", "stop"]
"""What was done about an I/O error (QMP reference, "BlockErrorAction")."""


class BlockImageCorrupted(Event):
    """An image contradicts itself (QMP reference, "BLOCK_IMAGE_CORRUPTED")."""

    NAME: ClassVar[str] = "BLOCK_IMAGE_CORRUPTED"

    device: str
    node_name: str | None = None
    msg: str
    offset: int | None = None
    size: int | None = None
    fatal: bool


class BlockIoError(Event):
    """A request failed (QMP reference, "BLOCK_IO_ERROR")."""

    NAME: ClassVar[str] = "BLOCK_IO_ERROR"

    device: str
    node_name: str | None = None
    operation: IoOperationType
    action: BlockErrorAction
    nospace: bool | None = None
    reason: str


class BlockWriteThreshold(Event):
    """A write went past the threshold (QMP reference, "BLOCK_WRITE_THRESHOLD")."""

    NAME: ClassVar[str] = "BLOCK_WRITE_THRESHOLD"

    node_name: str
    amount_exceeded: int
    write_threshold: int


QuorumOpType: TypeAlias = Literal["read", "write", "flush"]
"""The request that a quorum was doing (QMP reference, "QuorumOpType")."""


class QuorumFailure(Event):
    """Too few children agree (QMP reference, "QUORUM_FAILURE")."""

    NAME: ClassVar[str] = "QUORUM_FAILURE"

    reference: str
    sector_num: int
    sectors_count: int


class QuorumReportBad(Event):
    """A child of a quorum failed or disagrees (QMP reference, "QUORUM_REPORT_BAD")."""

    NAME: ClassVar[str] = "QUORUM_REPORT_BAD"

    type: QuorumOpType
    error: str | None = None
    node_name: str
    sector_num: int
    sectors_count: int

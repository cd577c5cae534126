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
"""QMP reference, "BlockErrorAction"."""


class BlockImageCorrupted(Event):
    """QMP reference, "BLOCK_IMAGE_CORRUPTED"."""

    NAME: ClassVar[str] = "BLOCK_IMAGE_CORRUPTED"

    device: str
    node_name: str | None = None
    msg: str
    offset: int | None = None
    size: int | None = None
    fatal: bool


class BlockIoError(Event):
    """QMP reference, "BLOCK_IO_ERROR"."""

    NAME: ClassVar[str] = "BLOCK_IO_ERROR"

    device: str
    node_name: str | None = None
    operation: IoOperationType
    action: BlockErrorAction
    nospace: bool | None = None
    reason: str


class BlockWriteThreshold(Event):
    """QMP reference, "BLOCK_WRITE_THRESHOLD"."""

    NAME: ClassVar[str] = "BLOCK_WRITE_THRESHOLD"

    node_name: str
    amount_exceeded: int
    write_threshold: int


QuorumOpType: TypeAlias = Literal["read", "write", "flush"]
"""QMP reference, "QuorumOpType"."""


class QuorumFailure(Event):
    """QMP reference, "QUORUM_FAILURE"."""

    NAME: ClassVar[str] = "QUORUM_FAILURE"

    reference: str
    sector_num: int
    sectors_count: int


class QuorumReportBad(Event):
    """QMP reference, "QUORUM_REPORT_BAD"."""

    NAME: ClassVar[str] = "QUORUM_REPORT_BAD"

    type: QuorumOpType
    error: str | None = None
    node_name: str
    sector_num: int
    sectors_count: int

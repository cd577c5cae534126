# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""I/O statistics (QMP reference, "query-blockstats")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.qapi.model import Struct, Union, command, commands, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import Number
    from qsd.qapi.schema.block_options import BlockdevDriver


class BlockDeviceTimedStats(Struct):
    """Statistics of an interval (QMP reference, "BlockDeviceTimedStats")."""

    interval_length: int = member("interval_length")
    min_rd_latency_ns: int = member("min_rd_latency_ns")
    max_rd_latency_ns: int = member("max_rd_latency_ns")
    avg_rd_latency_ns: int = member("avg_rd_latency_ns")
    min_wr_latency_ns: int = member("min_wr_latency_ns")
    max_wr_latency_ns: int = member("max_wr_latency_ns")
    avg_wr_latency_ns: int = member("avg_wr_latency_ns")
    min_flush_latency_ns: int = member("min_flush_latency_ns")
    max_flush_latency_ns: int = member("max_flush_latency_ns")
    avg_flush_latency_ns: int = member("avg_flush_latency_ns")
    avg_rd_queue_depth: Number = member("avg_rd_queue_depth")
    avg_wr_queue_depth: Number = member("avg_wr_queue_depth")


class BlockDeviceStats(Struct):
    """Counters of one device or node (QMP reference, "BlockDeviceStats")."""

    rd_bytes: int = member("rd_bytes")
    wr_bytes: int = member("wr_bytes")
    unmap_bytes: int = member("unmap_bytes")
    rd_operations: int = member("rd_operations")
    wr_operations: int = member("wr_operations")
    flush_operations: int = member("flush_operations")
    unmap_operations: int = member("unmap_operations")
    rd_total_time_ns: int = member("rd_total_time_ns")
    wr_total_time_ns: int = member("wr_total_time_ns")
    flush_total_time_ns: int = member("flush_total_time_ns")
    unmap_total_time_ns: int = member("unmap_total_time_ns")
    wr_highest_offset: int = member("wr_highest_offset")
    rd_merged: int = member("rd_merged")
    wr_merged: int = member("wr_merged")
    unmap_merged: int = member("unmap_merged")
    idle_time_ns: int | None = member("idle_time_ns", default=None)
    failed_rd_operations: int = member("failed_rd_operations")
    failed_wr_operations: int = member("failed_wr_operations")
    failed_flush_operations: int = member("failed_flush_operations")
    failed_unmap_operations: int = member("failed_unmap_operations")
    invalid_rd_operations: int = member("invalid_rd_operations")
    invalid_wr_operations: int = member("invalid_wr_operations")
    invalid_flush_operations: int = member("invalid_flush_operations")
    invalid_unmap_operations: int = member("invalid_unmap_operations")
    account_invalid: bool = member("account_invalid")
    account_failed: bool = member("account_failed")
    timed_stats: list[BlockDeviceTimedStats] = member("timed_stats")
    rd_latency_histogram: BlockLatencyHistogramInfo | None = member(
        "rd_latency_histogram", default=None
    )
    wr_latency_histogram: BlockLatencyHistogramInfo | None = member(
        "wr_latency_histogram", default=None
    )
    flush_latency_histogram: BlockLatencyHistogramInfo | None = member(
        "flush_latency_histogram", default=None
    )


class BlockStatsSpecificFile(Struct):
    """Counters of discards in a file (QMP reference, "BlockStatsSpecificFile")."""

    discard_nb_ok: int
    discard_nb_failed: int
    discard_bytes_ok: int


class BlockStatsSpecificNvme(Struct):
    """QMP reference, "BlockStatsSpecificNvme"."""

    completion_errors: int
    aligned_accesses: int
    unaligned_accesses: int


class BlockStatsSpecific(Union):
    """What only the node's driver counts (QMP reference, "BlockStatsSpecific")."""

    driver: BlockdevDriver

    TAG: ClassVar[str] = "driver"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "file": "BlockStatsSpecificFile",
        "host_device": "BlockStatsSpecificFile",
        "nvme": "BlockStatsSpecificNvme",
    }


class BlockStats(Struct):
    """Statistics of one device or node, and of those below it (QMP reference, "BlockStats")."""

    device: str | None = None
    qdev: str | None = None
    node_name: str | None = None
    stats: BlockDeviceStats
    driver_specific: BlockStatsSpecific | None = None
    parent: BlockStats | None = None
    backing: BlockStats | None = None


class QueryBlockstatsArguments(Struct):
    """QMP reference, "query-blockstats": the arguments."""

    query_nodes: bool | None = None


class BlockLatencyHistogramInfo(Struct):
    """How often a latency fell into each interval (QMP reference, "BlockLatencyHistogramInfo")."""

    boundaries: list[int]
    bins: list[int]


COMMANDS: Final = commands(
    __name__,
    command("query-blockstats", "QueryBlockstatsArguments", returns="list[BlockStats]"),
)
"""The commands of this module."""

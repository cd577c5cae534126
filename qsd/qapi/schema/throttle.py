# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Throttling limits, as an object and as properties (QMP reference, "ThrottleLimits")."""

from __future__ import annotations

from qsd.qapi.model import DEPRECATED, UNSTABLE, Struct, member


class ThrottleLimits(Struct):
    """How much I/O is let through (QMP reference, "ThrottleLimits")."""

    iops_total: int | None = None
    iops_total_max: int | None = None
    iops_total_max_length: int | None = None
    iops_read: int | None = None
    iops_read_max: int | None = None
    iops_read_max_length: int | None = None
    iops_write: int | None = None
    iops_write_max: int | None = None
    iops_write_max_length: int | None = None
    bps_total: int | None = None
    bps_total_max: int | None = None
    bps_total_max_length: int | None = None
    bps_read: int | None = None
    bps_read_max: int | None = None
    bps_read_max_length: int | None = None
    bps_write: int | None = None
    bps_write_max: int | None = None
    bps_write_max_length: int | None = None
    iops_size: int | None = None


class ThrottleGroupProperties(Struct):
    """Limits that several nodes share (QMP reference, "ThrottleGroupProperties")."""

    limits: ThrottleLimits | None = None
    x_iops_total: int | None = member(default=None, features=UNSTABLE)
    x_iops_total_max: int | None = member(default=None, features=UNSTABLE)
    x_iops_total_max_length: int | None = member(default=None, features=UNSTABLE)
    x_iops_read: int | None = member(default=None, features=UNSTABLE)
    x_iops_read_max: int | None = member(default=None, features=UNSTABLE)
    x_iops_read_max_length: int | None = member(default=None, features=UNSTABLE)
    x_iops_write: int | None = member(default=None, features=UNSTABLE)
    x_iops_write_max: int | None = member(default=None, features=UNSTABLE)
    x_iops_write_max_length: int | None = member(default=None, features=UNSTABLE)
    x_bps_total: int | None = member(default=None, features=UNSTABLE)
    x_bps_total_max: int | None = member(default=None, features=UNSTABLE)
    x_bps_total_max_length: int | None = member(default=None, features=UNSTABLE)
    x_bps_read: int | None = member(default=None, features=UNSTABLE)
    x_bps_read_max: int | None = member(default=None, features=UNSTABLE)
    x_bps_read_max_length: int | None = member(default=None, features=UNSTABLE)
    x_bps_write: int | None = member(default=None, features=UNSTABLE)
    x_bps_write_max: int | None = member(default=None, features=UNSTABLE)
    x_bps_write_max_length: int | None = member(default=None, features=UNSTABLE)
    x_iops_size: int | None = member(default=None, features=UNSTABLE)


class BlockIOThrottle(Struct):
    """Limits of one device (QMP reference, "BlockIOThrottle")."""

    device: str | None = member(default=None, features=DEPRECATED)
    id: str | None = None
    bps: int
    bps_rd: int = member("bps_rd")
    bps_wr: int = member("bps_wr")
    iops: int
    iops_rd: int = member("iops_rd")
    iops_wr: int = member("iops_wr")
    bps_max: int | None = member("bps_max", default=None)
    bps_rd_max: int | None = member("bps_rd_max", default=None)
    bps_wr_max: int | None = member("bps_wr_max", default=None)
    iops_max: int | None = member("iops_max", default=None)
    iops_rd_max: int | None = member("iops_rd_max", default=None)
    iops_wr_max: int | None = member("iops_wr_max", default=None)
    bps_max_length: int | None = member("bps_max_length", default=None)
    bps_rd_max_length: int | None = member("bps_rd_max_length", default=None)
    bps_wr_max_length: int | None = member("bps_wr_max_length", default=None)
    iops_max_length: int | None = member("iops_max_length", default=None)
    iops_rd_max_length: int | None = member("iops_rd_max_length", default=None)
    iops_wr_max_length: int | None = member("iops_wr_max_length", default=None)
    iops_size: int | None = member("iops_size", default=None)
    group: str | None = None

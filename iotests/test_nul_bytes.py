# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Paths with a NUL byte, which JSON can say and no file system can hold.

Each once ended in an internal error of the command that was given it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iotests.harness.daemon import Daemon

NUL = "a\0b"
UNIX = {"type": "unix", "path": NUL}
IN_DATA = {"type": "unix", "data": {"path": NUL}}

COMMANDS: list[tuple[str, dict[str, Any]]] = [
    ("chardev-add", {"id": "c", "backend": {"type": "socket", "data": {"addr": IN_DATA}}}),
    ("chardev-add", {"id": "c", "backend": {"type": "file", "data": {"out": NUL}}}),
    ("object-add", {"qom-type": "secret", "id": "o", "file": NUL}),
    ("object-add", {"qom-type": "tls-creds-x509", "id": "o", "dir": NUL, "endpoint": "server"}),
    ("object-add", {"qom-type": "tls-creds-psk", "id": "o", "dir": NUL, "endpoint": "server"}),
    ("nbd-server-start", {"addr": IN_DATA}),
    ("blockdev-add", {"driver": "file", "node_name": "m", "filename": NUL}),
    ("blockdev-add", {"driver": "nbd", "node_name": "m", "server": UNIX}),
    ("blockdev-add", {"driver": "blkdebug", "node_name": "m", "image": "n", "config": NUL}),
    ("block-export-add", {"type": "fuse", "id": "e", "node_name": "n", "mountpoint": NUL}),
    ("block-export-add", {"type": "vhost-user-blk", "id": "e", "node_name": "n", "addr": UNIX}),
    ("blockdev-snapshot-sync", {"node_name": "n", "snapshot_file": NUL, "snapshot_node_name": "m"}),
    ("drive-mirror", {"device": "n", "target": NUL, "sync": "full", "format": "raw"}),
    ("drive-backup", {"device": "n", "target": NUL, "sync": "full", "format": "raw"}),
    (
        "drive-backup",
        {
            "device": "n",
            "target": 'json:{"file":{"filename":"a\\u0000b"}}',
            "sync": "full",
            "job_id": "j",
            "mode": "existing",
        },
    ),
]


def test_paths_with_nul_bytes(tmp_path: Path, daemon_kind: str) -> None:
    if daemon_kind == "real":
        pytest.skip("the C daemon takes other bytes for them")
    with Daemon("ours", tmp_path, "--blockdev", "null-co,node-name=n,read-zeroes=on") as daemon:
        for name, arguments in COMMANDS:
            reply = daemon.qmp(name, **arguments)
            assert "No such file or directory" in reply["error"]["desc"], name
        assert daemon.quit() == 0
        assert "Traceback" not in daemon.log_text()

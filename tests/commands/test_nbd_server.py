# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

from qsd.aio import loop
from tests.commands.test_export import ExportingDaemon, unix


def test_start_add_remove_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with ExportingDaemon() as daemon:
            await daemon.rig.memory("m")
            await daemon.rig.memory("r", read_only=True)
            assert await daemon.refused("nbd-server-stop") == "NBD server not running"
            assert await daemon.refused("nbd-server-add", device="m") == "NBD server not running"
            text = await daemon.refused(
                "nbd-server-start", addr=unix(tmp_path / "s"), **{"tls-creds": "x"}
            )
            assert text == "No TLS credentials with id 'x'"
            await daemon.qmp("nbd-server-start", addr=unix(tmp_path / "s"))
            text = await daemon.refused("nbd-server-start", addr=unix(tmp_path / "s2"))
            assert text == "NBD server already running"
            await daemon.qmp("nbd-server-add", device="m", writable=True, description="text")
            text = await daemon.refused("nbd-server-add", device="m")
            assert text == "Block export id 'm' is already in use"
            text = await daemon.refused("nbd-server-add", device="nope", name="1")
            assert text == "Cannot find device='nope' nor node-name='nope'"
            text = await daemon.refused("nbd-server-add", device="m", name="1")
            assert text == "Invalid block export id"
            text = await daemon.refused("nbd-server-add", device="m", name="b", bitmap="x")
            assert text == "Bitmap 'x' is not found"
            # Read-only nodes are exported read-only without complaint.
            await daemon.qmp("nbd-server-add", device="r", writable=True)
            assert not daemon.context.exports.find("r").writable
            assert daemon.context.exports.find("m").writable
            text = await daemon.refused("nbd-server-remove", name="nope")
            assert text == "Export 'nope' is not found"
            await daemon.qmp("nbd-server-remove", name="r")
            assert daemon.deleted() == ["r"]
            await daemon.qmp("nbd-server-stop")
            assert daemon.deleted() == ["r", "m"]
            assert not (tmp_path / "s").exists()

    loop.run(main())


def test_only_nbd_exports_are_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with ExportingDaemon() as daemon:
            await daemon.rig.memory("m")
            await daemon.qmp("nbd-server-start", addr=unix(tmp_path / "s"))
            await daemon.qmp("nbd-server-add", device="m")
            export = daemon.context.exports.find("m")
            type(export).TYPE = "fuse"
            try:
                text = await daemon.refused("nbd-server-remove", name="m")
            finally:
                type(export).TYPE = "nbd"
            assert text == "Block export 'm' is not an NBD export"

    loop.run(main())

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A storage daemon inside your own program: make an image, serve it, leave no trace.

python examples/embed.py [FOLDER]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import Any

from qsd.daemon import StorageDaemon


async def run_job(daemon: StorageDaemon, command: str, **options: Any) -> None:
    """Run a command that starts a job, and wait until the job is through."""
    await daemon.qmp(command, {"job-id": "job", "options": options})
    while True:
        (job,) = await daemon.qmp("query-jobs")
        if job["status"] == "concluded":
            break
        await asyncio.sleep(0.01)
    await daemon.qmp("job-dismiss", {"id": "job"})
    if "error" in job:
        raise SystemExit(job["error"])


async def main(folder: str) -> None:
    """Create a qcow2 image and export it over NBD, all in this process."""
    image, address = f"{folder}/disk.qcow2", f"{folder}/nbd.sock"
    async with StorageDaemon() as daemon:
        await run_job(daemon, "blockdev-create", driver="file", filename=image, size=0)
        file = {"driver": "file", "node-name": "file", "filename": image}
        await daemon.qmp("blockdev-add", file)
        await run_job(daemon, "blockdev-create", driver="qcow2", file="file", size=1 << 30)

        await daemon.qmp("blockdev-add", {"driver": "qcow2", "node-name": "disk", "file": "file"})
        unix = {"type": "unix", "data": {"path": address}}
        await daemon.qmp("nbd-server-start", {"addr": unix})
        export = {"type": "nbd", "id": "disk", "node-name": "disk", "writable": True}
        await daemon.qmp("block-export-add", export)

        for node in await daemon.qmp("query-named-block-nodes", {"flat": True}):
            print(f"{node['node-name']}: {node['drv']}, {node['image']['virtual-size']} bytes")
        print(f"nbd+unix:///disk?socket={address}")
        # Clients may come now.  Leaving the block ends exports, nodes and the server.


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))

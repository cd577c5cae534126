# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of background jobs: a whole 1 GiB image from one node to another."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

_DEVICE = {
    "backup": ("blockdev-backup", {"sync": "full", "target": "dst"}),
    "mirror": ("blockdev-mirror", {"sync": "full", "target": "dst"}),
    "stream": ("block-stream", {}),
    "commit": ("block-commit", {}),
}


def _fresh(folder: Path, name: str, *options: str) -> None:
    (folder / name).unlink(missing_ok=True)
    fmt = "raw" if name.endswith(".raw") else "qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", fmt, *options, name, *([] if options else ["1G"])],
        cwd=folder,
        check=True,
    )


def _node(name: str, image: str, *, backing: str | None = None) -> list[str]:
    fmt = "raw" if image.endswith(".raw") else "qcow2"
    words = f"{fmt},node-name={name},file.driver=file,file.filename={image}"
    return ["--blockdev", words + (f",backing={backing}" if backing else "")]


def copy_job(kind: str, source: str, target: str) -> Run:
    """Make a workload of a backup or mirror from `source` to a fresh `target`."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, source))
        _fresh(folder, target)
        try:
            with Daemon(side, folder, *_node("src", source), *_node("dst", target)) as daemon:
                return metered(daemon, lambda: _timed(daemon, kind, "src"))
        finally:
            (folder / target).unlink(missing_ok=True)

    return run


def chain_job(kind: str, base_format: str) -> Run:
    """Make a workload of a stream into, or a commit out of, a qcow2 overlay of 1 GiB."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        top = "job-top.qcow2"
        if kind == "stream":
            base = images.ensure(folder, f"full.{base_format}").name
            clients.warm(folder / base)
            _fresh(folder, top, "-b", base, "-F", base_format)
        else:
            base = f"job-base.{base_format}"
            _fresh(folder, base)
            _full_overlay(folder, top, base, base_format)
            clients.warm(folder / top)
        try:
            with Daemon(
                side, folder, *_node("base", base), *_node("top", top, backing="base")
            ) as daemon:
                return metered(daemon, lambda: _timed(daemon, kind, "top"))
        finally:
            (folder / top).unlink(missing_ok=True)
            (folder / f"job-base.{base_format}").unlink(missing_ok=True)

    return run


def _full_overlay(folder: Path, name: str, base: str, base_format: str) -> None:
    subprocess.run(
        ["cp", "--sparse=never", images.ensure(folder, "full.qcow2"), folder / name], check=True
    )
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", base_format, "-b", base, name],
        cwd=folder,
        check=True,
    )


def _timed(daemon: Daemon, kind: str, device: str) -> clients.Load:
    """Run a job to its end; return how often it could run per second."""
    command, extra = _DEVICE[kind]
    arguments: dict[str, Any] = {"job_id": "j", "device": device, "auto_dismiss": False, **extra}
    before = time.perf_counter()
    daemon.qmp(command, **arguments)
    status = ""
    while status != "concluded":
        event = daemon.event()
        if event["event"] == "JOB_STATUS_CHANGE":
            status = event["data"]["status"]
        elif event["event"] == "BLOCK_JOB_READY":
            daemon.qmp("job-complete", id="j")
    after = time.perf_counter()
    (job,) = daemon.qmp("query-jobs")
    if "error" in job:
        raise RuntimeError(job["error"])
    return clients.Load(1 / (after - before), 1)

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""SIGKILL at a random moment of a job, under a guest's load.

Afterwards every image checks clean but for leaked clusters, the disk holds what was flushed or
something written later, and a new daemon can run the same job to its end.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from iotests.harness.chains import (
    SIZE,
    add_chain,
    add_image,
    content_of,
    export,
    make_chain,
    make_image,
)
from iotests.harness.crash import Load, Writer
from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, need, run

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(1800)]

#: Bytes per second; so fast that some kills hit the end of the job.
SPEED = 24 << 20


class Case(NamedTuple):
    """A job.

    Attributes:
        command: What starts it; its identifier is "j".
        arguments: Its arguments.
        target: Whether it copies to a second image, "target".
        completes: Whether it has to be told to complete.
        result: The image that holds the guest's data after success.
    """

    command: str
    arguments: dict[str, Any]
    target: bool = False
    completes: bool = False
    result: str = "top"


COPY = {"device": "top", "target": "target", "sync": "full"}
CASES = {
    "mirror": Case("blockdev-mirror", COPY, True, True, "target"),
    "mirror-blocking": Case(
        "blockdev-mirror", {**COPY, "copy_mode": "write-blocking"}, True, True, "target"
    ),
    "backup": Case("blockdev-backup", COPY, True),
    "backup-compressed": Case("blockdev-backup", {**COPY, "compress": True}, True),
    "commit": Case("block-commit", {"device": "top", "top_node": "mid", "base_node": "base"}),
    "active-commit": Case("block-commit", {"device": "top"}, False, True, "base"),
    "stream": Case("block-stream", {"device": "top"}),
    "stream-part": Case("block-stream", {"device": "top", "base_node": "base"}),
}


def open_all(kind: str, folder: Path, case: Case) -> Daemon:
    """Start a daemon with the images as their own records say, and the disk exported."""
    (folder / "nbd.sock").unlink(missing_ok=True)
    daemon = Daemon(kind, folder)
    if backing_of(folder, "top") == "mid":
        add_chain(daemon)
    else:
        add_image(daemon, "top")  # the job had recorded its result
    if case.target:
        add_image(daemon, "target", backing=None)
    export(daemon, "top")
    return daemon


def backing_of(folder: Path, name: str) -> str | None:
    info = json.loads(run(folder, "qemu-img", "info", "-U", "--output=json", name))
    found: str | None = info.get("backing-filename")
    return found


def run_killed(kind: str, folder: Path, case: Case, moment: float, load_of: LoadOf) -> Load:
    """Start the job under the load and kill the daemon a little later."""
    with open_all(kind, folder, case) as daemon:
        load = load_of(1)
        with Writer(load, load_of.before) as writer:
            load.wait_for(20)
            daemon.ok(case.command, job_id="j", speed=SPEED, **case.arguments)
            killer = threading.Timer(moment, daemon.process.kill)
            killer.start()
            writer.join()
            killer.join()
    return load


class LoadOf:
    """Makes loads on the export, which go on from what was found last.

    Attributes:
        before: By sector, what is there.
    """

    def __init__(self, folder: Path, before: dict[int, bytes], seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self.before = before

    def __call__(self, number: int) -> Load:
        load = Load(self._folder / "nbd.sock", "x", self._seed + number, depth=4)
        load.pace = 0.002
        return load


def run_again(kind: str, folder: Path, case: Case, load_of: LoadOf) -> Load:
    """Run the job once more, to its end."""
    with open_all(kind, folder, case) as daemon:
        load = load_of(2)
        with Writer(load, load_of.before) as writer:
            load.wait_for(20)
            daemon.ok(case.command, job_id="j", **case.arguments)
            if case.completes:
                daemon.event("BLOCK_JOB_READY", device="j")
                daemon.ok("job-complete", id="j")
            event = daemon.event("BLOCK_JOB_COMPLETED", device="j")
            assert "error" not in event["data"], event
            daemon.event("JOB_STATUS_CHANGE", id="j", status="null")
            load.wait_for(20)
            writer.finish()
        assert daemon.quit() == 0
    return load


@pytest.mark.parametrize("name", CASES)
def test_kill(name: str, tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    need("qemu-img", "qemu-io")
    case = CASES[name]
    source = random.Random(name)
    for number in range(max(2, kill_rounds // len(CASES))):
        folder = tmp_path / str(number)
        folder.mkdir()
        load_of = LoadOf(folder, make_chain(folder), source.randrange(1 << 30))
        if case.target:
            make_image(folder, "target")
        load = run_killed(daemon_kind, folder, case, source.uniform(0.01, 0.9), load_of)
        for image in ("base", "mid", *(["target"] if case.target else [])):
            check_image(folder, image, leaks=True)
        load_of.before = load.verify(content_of(folder, "top", leaks=True))
        if not case.target and backing_of(folder, "top") != "mid":
            continue  # it was over already
        if "compress" in case.arguments:
            make_image(folder, "target")  # compressed data replaces no other
        load = run_again(daemon_kind, folder, case, load_of)
        load.verify(content_of(folder, case.result, leaks=True))


def create(daemon: Daemon) -> None:
    options = {"driver": "qcow2", "file": "file", "size": SIZE, "preallocation": "full"}
    daemon.ok("blockdev-create", job_id="j", options=options)


def amend(daemon: Daemon) -> None:
    options = {
        "driver": "qcow2",
        "encrypt": {
            "format": "luks",
            "state": "active",
            "new-secret": "new",
            "iter-time": 400,
        },
    }
    daemon.ok("x-blockdev-amend", job_id="j", node_name="disk", options=options, force=False)


def killed(
    kind: str, folder: Path, start: Callable[[Daemon], None], moment: float, *arguments: str
) -> None:
    """Kill a daemon a little after it began a job that has no guest."""
    with Daemon(kind, folder, *arguments) as daemon:
        start(daemon)
        killer = threading.Timer(moment, daemon.process.kill)
        killer.start()
        killer.join()


def test_create(tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    """An image that was being created can be created again."""
    need("qemu-img", "qemu-io")
    (tmp_path / "image").touch()
    arguments = ("--blockdev", "file,node-name=file,filename=image")
    for number in range(max(2, kill_rounds // len(CASES))):
        killed(daemon_kind, tmp_path, create, 0.004 * number**2, *arguments)
    with Daemon(daemon_kind, tmp_path, *arguments) as daemon:
        create(daemon)
        daemon.job("j")
        assert daemon.quit() == 0
    assert content_of(tmp_path, "image") == bytes(SIZE)


def test_amend(tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    """While a key is added, the other one opens the image at any time; afterwards both do."""
    need("qemu-img", "qemu-io")
    secrets = [
        word for key in ("old", "new") for word in ("--object", f"secret,id={key},data={key}")
    ]
    luks = "encrypt.format=luks,encrypt.iter-time=10"
    options = f"{luks},encrypt.key-secret=old"
    run(tmp_path, "qemu-img", "create", "-q", *secrets, "-f", "qcow2", "-o", options, "image", "4M")
    arguments = [
        *secrets,
        "--blockdev",
        "qcow2,node-name=disk,file.driver=file,file.filename=image,"
        "encrypt.format=luks,encrypt.key-secret=old",
    ]
    work(tmp_path, "old", secrets, "write -P 5 1M 1M")
    for number in range(4):  # every one that is not killed in time takes one of eight key slots
        killed(daemon_kind, tmp_path, amend, 0.1 * number, *arguments)
        options = "driver=qcow2,encrypt.key-secret=old,file.filename=image"
        run(tmp_path, "qemu-img", "check", "-q", *secrets, "--image-opts", options)
        work(tmp_path, "old", secrets, "read -P 5 1M 1M")
    with Daemon(daemon_kind, tmp_path, *arguments) as daemon:
        amend(daemon)
        daemon.job("j")
        assert daemon.quit() == 0
    for key in ("old", "new"):
        work(tmp_path, key, secrets, "read -P 5 1M 1M")


def work(folder: Path, key: str, secrets: list[str], command: str) -> None:
    """Let qemu-io do something with the encrypted image."""
    options = f"driver=qcow2,encrypt.key-secret={key},file.filename=image"
    said = run(folder, "qemu-io", *secrets, "--image-opts", "-c", command, options)
    assert "failed" not in said, said

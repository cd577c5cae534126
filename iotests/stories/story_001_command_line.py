# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Command lines that do not start a daemon: help, versions, and what is refused, with its text."""

from __future__ import annotations

from iotests.harness.story import Story


def story(h: Story) -> None:
    h.heading("Options that answer and end")
    h.command("--object", "help")
    h.command("--object", "secret,help")
    h.command("--blockdev", "help")
    h.command("--export", "help")

    h.heading("Options that do not exist or lack something")
    h.command("--nonsense")
    h.command("--blockdev")
    h.command("stray")
    h.command("--blockdev", "driver=null-co")
    h.command("--blockdev", "null-co")
    h.command("--blockdev", "nonsense,node-name=x")
    h.command("--blockdev", "null-co,node-name=x,nonsense=1")
    h.command("--blockdev", "null-co,node-name=x,size=many")
    h.command("--blockdev", "file,node-name=x")
    h.command("--blockdev", "file,node-name=x,filename=missing.raw")
    h.command("--blockdev", "raw,node-name=x,file=missing")
    h.command("--blockdev", '{"driver": "null-co"')
    h.command("--object", "secret,id=s,data=x,file=y")
    h.command("--object", "unknown-type,id=s")
    h.command("--chardev", "nonsense,id=c")
    h.command("--monitor", "missing")
    h.command("--monitor", "chardev=missing,mode=readline")
    h.command("--export", "nbd,id=x,node-name=missing")
    h.command("--export", "nbd,id=x")
    h.command("--nbd-server", "addr.type=unix")
    h.command("--nbd-server", "addr.type=carrier-pigeon")
    h.command("--pidfile", "missing-folder/pid")

    h.heading("The first error ends the daemon, before later options are looked at")
    h.command("--blockdev", "null-co,node-name=x", "--blockdev", "null-co,node-name=x", "--bad")

    h.heading("Options are processed in their order")
    h.command("--export", "nbd,id=x,node-name=later", "--blockdev", "null-co,node-name=later")

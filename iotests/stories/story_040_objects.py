# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Objects come and go over QMP: secrets, throttle groups, authorisation, and what is none."""

from __future__ import annotations

from iotests.harness.story import Story


def story(h: Story) -> None:
    (h.folder / "password").write_text("from a file\n")
    h.start("--object", "secret,id=given,data=letmein")
    h.heading("Made, listed, looked at, removed")
    h.qmp("object-add", {"qom-type": "secret", "id": "file", "file": "password"})
    h.qmp("object-add", {"qom-type": "secret", "id": "b64", "data": "aGVsbG8=", "format": "base64"})
    h.qmp("object-add", {"qom-type": "iothread", "id": "io"})
    for item in sorted(
        h.daemon.ok("qom-list", path="/objects"), key=lambda item: str(item["name"])
    ):
        h.show(item)
    h.qmp("qom-get", path="/objects/file", property="file")
    h.qmp("qom-get", path="/objects/b64", property="format")
    h.qmp("qom-get", path="/objects/io", property="poll-max-ns")
    h.qmp("qom-set", path="/objects/io", property="poll-max-ns", value=5)
    h.qmp("qom-get", path="/objects/io", property="poll-max-ns")
    h.qmp("object-del", id="file")
    h.qmp("object-del", id="file")

    h.heading("What is wrong")
    h.qmp("object-add", {"qom-type": "secret", "id": "given", "data": "x"})
    h.qmp("object-add", {"qom-type": "secret", "id": "1st", "data": "x"})
    h.qmp("object-add", {"qom-type": "secret", "id": "s"})
    h.qmp("object-add", {"qom-type": "secret", "id": "s", "data": "x", "file": "y"})
    h.qmp("object-add", {"qom-type": "secret", "id": "s", "file": "missing"})
    h.qmp("object-add", {"qom-type": "secret", "id": "s", "data": "!!", "format": "base64"})
    h.qmp("object-add", {"qom-type": "secret", "id": "s", "data": "x", "nonsense": 1})
    h.qmp("object-add", {"qom-type": "secret", "id": "s", "data": "eA==", "keyid": "missing"})
    h.qmp("object-add", {"qom-type": "nonsense", "id": "s"})
    h.qmp("object-add", {"qom-type": "rng-random", "id": "s"})
    h.qmp("object-add", {"qom-type": "secret"})
    h.qmp("qom-get", path="/objects/missing", property="x")
    h.qmp("qom-get", path="/objects/io", property="nonsense")
    h.qmp("qom-set", path="/objects/io", property="poll-max-ns", value="text")

    h.heading("Throttle groups and authorisation")
    h.qmp("object-add", {"qom-type": "throttle-group", "id": "slow", "limits": {"iops-total": 10}})
    h.qmp("qom-get", path="/objects/slow", property="limits")
    h.qmp(
        "object-add",
        {"qom-type": "throttle-group", "id": "bad", "limits": {"iops-total": 1, "iops-read": 1}},
    )
    h.qmp("object-add", {"qom-type": "authz-simple", "id": "who", "identity": "CN=me"})
    h.qmp("qom-get", path="/objects/who", property="identity")
    h.qmp("object-add", {"qom-type": "authz-simple", "id": "nobody"})
    h.quit()

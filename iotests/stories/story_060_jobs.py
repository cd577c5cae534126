# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Jobs and their states, shown by the simplest job: making an image."""

from __future__ import annotations

from iotests.harness.story import Story


def states(h: Story, job_id: str, last: str) -> None:
    seen: list[str] = []
    while not seen or seen[-1] != last:
        seen.append(h.daemon.event("JOB_STATUS_CHANGE", id=job_id)["data"]["status"])
    h.say(f"** {job_id}:", " ".join(seen))


def story(h: Story) -> None:
    h.start()
    h.heading("From made to concluded")
    h.qmp(
        "blockdev-create",
        job_id="one",
        options={"driver": "file", "filename": "a.raw", "size": 4096},
    )
    states(h, "one", "concluded")
    h.qmp("query-jobs")
    h.qmp("query-block-jobs")
    h.heading("Only some verbs fit a state")
    for verb in ("pause", "resume", "complete", "finalize", "cancel", "dismiss"):
        h.qmp(f"job-{verb}", id="one")
    states(h, "one", "null")
    h.qmp("job-dismiss", id="one")

    h.heading("A job that fails says why")
    h.qmp(
        "blockdev-create", job_id="two", options={"driver": "file", "filename": "no/a", "size": 1}
    )
    states(h, "two", "concluded")
    h.qmp("query-jobs")
    h.heading("Identifiers")
    h.qmp("blockdev-create", job_id="two", options={"driver": "file", "filename": "b", "size": 1})
    h.qmp("blockdev-create", job_id="2", options={"driver": "file", "filename": "b", "size": 1})
    h.qmp("block-job-dismiss", id="two")
    h.qmp("job-dismiss", id="two")
    h.qmp("block-job-cancel", device="missing")
    h.quit()

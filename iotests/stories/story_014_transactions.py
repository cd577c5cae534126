# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Several actions, all or none."""

from __future__ import annotations

from iotests.harness.story import Story


def story(h: Story) -> None:
    h.start("--blockdev", "null-co,node-name=disk,size=1048576")
    h.qmp("transaction", actions=[])
    h.qmp("transaction", actions=[{"type": "abort", "data": {}}])
    h.qmp("transaction", actions=[{"type": "nonsense", "data": {}}])
    h.qmp("transaction", actions=[{"type": "abort"}])
    h.qmp("transaction", actions=[{"data": {}}])
    h.qmp("transaction")
    h.quit()

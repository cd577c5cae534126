# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""File descriptors are a budget: clients must not use up what the daemon itself needs.

Without a free descriptor no image can be reopened, no job begun, and no module imported that is
needed for the first time.  So whoever lets clients in leaves a reserve.
"""

from __future__ import annotations

import os
from typing import Final

#: Descriptors that clients leave to the daemon.
RESERVE: Final = 24


def has_room_for_client(fd: int) -> bool:
    """Tell whether one more client leaves the reserve alone.

    The system hands out the lowest free number, so a number near the limit says that nearly all
    are taken.

    Args:
        fd: Any open descriptor.
    """
    from resource import RLIMIT_NOFILE, getrlimit

    try:
        number = os.dup(fd)
    except OSError:
        return False
    os.close(number)
    return number < getrlimit(RLIMIT_NOFILE)[0] - RESERVE

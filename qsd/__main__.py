# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Makes ``python -m qsd`` and the console scripts run the daemon."""

from __future__ import annotations

import sys

from qsd.cli import main

if __name__ == "__main__":
    sys.exit(main())

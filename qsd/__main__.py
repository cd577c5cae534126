# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Makes ``python -m qsd`` and the console scripts run the daemon."""

from __future__ import annotations

import os
import sys

if "PYTHONDONTWRITEBYTECODE" in os.environ:
    # Container images and test machines set this for everything that runs on them.  A daemon that
    # compiles itself at every start takes three times as long to start.
    sys.dont_write_bytecode = False


def main() -> int:
    """Run the program and return its exit status."""
    import gc

    from qsd.aio.lean import LeanImports, is_safe

    gc.disable()  # nothing that is imported is garbage
    if is_safe():
        with LeanImports("typing"):
            from qsd.cli import main as run
    else:
        from qsd.cli import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Pure helpers: no I/O, no event loop, nothing of the daemon.  Import the modules themselves."""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Black-box tests of the daemon: they start it as a process and import nothing of it."""

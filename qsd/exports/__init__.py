# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Exports: serving a node to the outside.

Import the modules themselves: a daemon that exports nothing needs none of them.
"""

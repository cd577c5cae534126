# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The NBD protocol.

Import the modules themselves: a server needs no client and the other way round.
"""

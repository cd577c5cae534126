# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Protocols as pure cores: bytes in, bytes and decisions out."""

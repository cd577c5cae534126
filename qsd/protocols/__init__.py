# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Drivers that reach bytes outside the process; the catalog is their front door."""

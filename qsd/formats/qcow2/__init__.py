# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The qcow2 format; the catalog is its front door."""

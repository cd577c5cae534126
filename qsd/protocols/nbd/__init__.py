# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The NBD client driver; the catalog is its front door."""

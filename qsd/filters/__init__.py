# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Filters: nodes that change requests on their way through."""

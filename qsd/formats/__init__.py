# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Image formats.  The catalog is the front door; drivers do not know each other."""

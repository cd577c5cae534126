# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Images in files and devices of this machine."""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One numbered story per file, its expected output beside it."""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What stories and crash tests stand on: processes, QMP, an NBD client, real tools."""

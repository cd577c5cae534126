# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT

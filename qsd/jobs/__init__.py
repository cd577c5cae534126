# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Background jobs: long work with a life cycle, seen and steered by the user.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

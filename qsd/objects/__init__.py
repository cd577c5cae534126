# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What ``object-add`` makes, and the tree in which it is found.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

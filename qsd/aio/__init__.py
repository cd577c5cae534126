# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The event-loop core: the only package that spawns tasks and threads.

Import the modules themselves (``qsd.aio.tasks`` and so on): start-up time forbids a front door that
pulls in all of them.
"""

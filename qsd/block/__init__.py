# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The block graph engine: nodes, edges, permissions, requests, drain.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

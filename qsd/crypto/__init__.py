# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Ciphers; the only package that imports a library for them.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

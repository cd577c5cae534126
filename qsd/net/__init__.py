# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sockets, and nothing above them.

* :mod:`qsd.net.address`: socket addresses in both of their QMP forms.
* :mod:`qsd.net.listen`: from an address to listening sockets, and their clean-up.
* :mod:`qsd.net.connect`: from an address to a connected socket.
* :mod:`qsd.net.stream`: a byte stream over any descriptor, with backpressure.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

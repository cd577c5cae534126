# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A storage daemon in pure Python that speaks QEMU's storage-daemon language.

To embed one, use :class:`qsd.daemon.StorageDaemon`; importing this package alone imports nothing.
"""

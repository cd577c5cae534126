# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Virtio, the device's side: guest memory, split rings, block requests.  No I/O."""

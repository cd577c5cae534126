# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices: byte streams with a name, on which monitors speak.

* :mod:`qsd.chardev.base`: what every backend offers and what a user of one provides.
* :mod:`qsd.chardev.registry`: the devices of a daemon by label.
* :mod:`qsd.chardev.options`: the ``--chardev`` option.

One module per kind of backend, imported when it is first asked for.
"""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Speaking QMP: frame, negotiate, dispatch, emit; no command is known here.

* :mod:`qsd.qmp.session`: what one client said and may say; no I/O.
* :mod:`qsd.qmp.dispatch`: from a checked request to a handler and back to a reply.
* :mod:`qsd.qmp.events`: events to all clients, some of them at a limited rate.
* :mod:`qsd.qmp.server`: sessions on character devices.

Import the modules themselves: start-up time forbids a front door that pulls in all of them.
"""

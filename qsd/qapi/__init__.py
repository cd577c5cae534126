# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The QMP data model, written as Python types rather than generated.

* :mod:`~qsd.qapi.schema` declares the interface: ``find_command("blockdev-add").arguments``.
* :mod:`~qsd.qapi.model` is what the declarations are made of.
* :mod:`~qsd.qapi.convert` turns JSON and options into typed objects and back.
* :mod:`~qsd.qapi.keyval` and :mod:`~qsd.qapi.json_text` read the two spellings.
* :mod:`~qsd.qapi.introspect` answers ``query-qmp-schema``.
* :mod:`~qsd.qapi.events` is the sink that whoever emits events is handed.

From text to a typed object and back::

    options = from_keyval(BlockdevOptions, parse_keyval("raw,file=f,size=1024", "driver"))
    options.driver, options.branch.file     # "raw", "f"
    to_json(options)                        # {"driver": "raw", "size": 1024, "file": "f"}

Nothing is imported here: a daemon that starts needs few of these modules.
"""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What QEMU 7.2.22 answers to wrong arguments of QMP commands: command, arguments, description."""

from __future__ import annotations

from typing import Any, Final

REFUSED: Final[list[tuple[str, dict[str, Any], str]]] = [
    ("block_resize", {}, "Parameter 'size' is missing"),
    ("block_resize", {"foo": 1}, "Parameter 'size' is missing"),
    (
        "block_resize",
        {"foo": 1, "size": "x"},
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "block_resize",
        {"size": 9223372036854775808},
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "block_resize",
        {"size": 18446744073709551616},
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "block_resize",
        {"size": -9223372036854775809},
        "Invalid parameter type for 'size', expected: integer",
    ),
    ("block_resize", {"size": 1.0}, "Invalid parameter type for 'size', expected: integer"),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": {"driver": "bogus"}},
        "Parameter 'driver' does not accept value 'bogus'",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": {"driver": "file"}},
        "Parameter 'file.filename' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": {"driver": "file", "filename": 1}},
        "Invalid parameter type for 'file.filename', expected: string",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": {"driver": "file", "filename": "x", "foo": 1}},
        "Parameter 'file.foo' is unexpected",
    ),
    (
        "blockdev-add",
        {
            "driver": "raw",
            "node-name": "a",
            "file": {"driver": "file", "filename": "x", "locking": "maybe"},
        },
        "Parameter 'locking' does not accept value 'maybe'",
    ),
    (
        "blockdev-add",
        {
            "driver": "raw",
            "node-name": "a",
            "file": {"driver": "file", "filename": "x"},
            "bar": {"x": 1},
        },
        "Parameter 'bar' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": {}},
        "Parameter 'file.driver' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "file": True},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "offset": "1", "file": True},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "offset": 1, "file": True},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "a", "offset": -1, "size": 9223372036854775808, "file": "x"},
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "node-name": "a", "children": "x"},
        "Invalid parameter type for 'children', expected: array",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "node-name": "a", "children": [1], "vote-threshold": 1},
        "Invalid parameter type for 'null', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {
            "driver": "quorum",
            "node-name": "a",
            "children": [{"driver": "null-co", "x": 1}],
            "vote-threshold": 1,
        },
        "Parameter 'children[0].x' is unexpected",
    ),
    (
        "blockdev-add",
        {
            "driver": "quorum",
            "node-name": "a",
            "children": ["a", {"driver": "null-co", "size": "x"}],
            "vote-threshold": 1,
        },
        "Invalid parameter type for 'children[1].size', expected: integer",
    ),
    (
        "blockdev-add",
        {
            "driver": "quorum",
            "node-name": "a",
            "children": ["a", {"driver": "null-co", "read-zeroes": 2}],
            "vote-threshold": 1,
        },
        "Invalid parameter type for 'children[1].read-zeroes', expected: boolean",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "backing": 5},
        "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "backing": {}},
        "Parameter 'backing.driver' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "overlap-check": "foo"},
        "Parameter 'overlap-check' does not accept value 'foo'",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "overlap-check": 1},
        "Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "overlap-check": {"template": "foo"}},
        "Parameter 'template' does not accept value 'foo'",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "overlap-check": {"tempate": "foo"}},
        "Parameter 'overlap-check.tempate' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "encrypt": {"format": "foo"}},
        "Parameter 'format' does not accept value 'foo'",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "encrypt": {"format": "luks", "x": 1}},
        "Parameter 'encrypt.x' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "a", "file": "x", "encrypt": {}},
        "Parameter 'encrypt.format' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "nbd", "node-name": "a", "server": {"type": "inet"}},
        "Parameter 'server.host' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "nbd", "node-name": "a", "server": {"type": "inet", "host": "x", "port": 1}},
        "Invalid parameter type for 'server.port', expected: string",
    ),
    (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "a",
            "server": {"type": "inet", "host": "x", "port": "1", "to": 70000},
        },
        "Parameter 'to' expects uint16_t",
    ),
    (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "a",
            "reconnect-delay": -1,
            "server": {"type": "unix", "path": "1"},
        },
        "Parameter 'reconnect-delay' expects uint32_t",
    ),
    (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "a",
            "reconnect-delay": 4294967296,
            "server": {"type": "unix", "path": "1"},
        },
        "Parameter 'reconnect-delay' expects uint32_t",
    ),
    (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "a",
            "reconnect-delay": 9223372036854775808,
            "server": {"type": "unix", "path": "1"},
        },
        "Parameter 'reconnect-delay' expects uint32_t",
    ),
    (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "a",
            "reconnect-delay": 18446744073709551616,
            "server": {"type": "unix", "path": "1"},
        },
        "Parameter 'reconnect-delay' expects uint64",
    ),
    (
        "blockdev-add",
        {"driver": "null-co", "node-name": "a", "latency-ns": -1, "x": 1},
        "Parameter 'x' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "null-co", "node-name": "a", "latency-ns": 18446744073709551615, "x": 1},
        "Parameter 'x' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "null-co", "node-name": "a", "latency-ns": 18446744073709551616, "x": 1},
        "Parameter 'latency-ns' expects uint64",
    ),
    (
        "blockdev-add",
        {"driver": "null-co", "node-name": "a", "latency-ns": 1.5, "x": 1},
        "Parameter 'latency-ns' expects uint64",
    ),
    (
        "blockdev-add",
        {"driver": "blkdebug", "node-name": "a", "image": "x", "max-transfer": 2147483648},
        "Parameter 'max-transfer' expects int32_t",
    ),
    (
        "blockdev-add",
        {"driver": "blkdebug", "node-name": "a", "image": "x", "inject-error": [{"event": "foo"}]},
        "Parameter 'event' does not accept value 'foo'",
    ),
    (
        "blockdev-add",
        {"driver": "blkdebug", "node-name": "a", "image": "x", "inject-error": [{"event": 1}]},
        "Invalid parameter type for 'inject-error[0].event', expected: string",
    ),
    (
        "blockdev-add",
        {
            "driver": "blkdebug",
            "node-name": "a",
            "image": "x",
            "inject-error": [{"event": "l1_update", "zoo": 1, "once": 1}],
        },
        "Invalid parameter type for 'inject-error[0].once', expected: boolean",
    ),
    (
        "blockdev-add",
        {
            "driver": "blkdebug",
            "node-name": "a",
            "image": "x",
            "inject-error": [{"event": "l1_update", "zoo": 1}],
        },
        "Parameter 'inject-error[0].zoo' is unexpected",
    ),
    (
        "blockdev-add",
        {
            "driver": "blkdebug",
            "node-name": "a",
            "image": "x",
            "inject-error": [{"event": "l1_update"}, 3],
        },
        "Invalid parameter type for 'inject-error[1]', expected: object",
    ),
    (
        "blockdev-add",
        {"driver": "blkdebug", "node-name": "a", "image": "x", "take-child-perms": ["foo"]},
        "Parameter 'null' does not accept value 'foo'",
    ),
    (
        "blockdev-add",
        {"driver": "blkdebug", "node-name": "a", "image": "x", "take-child-perms": [7]},
        "Invalid parameter type for 'take-child-perms[0]', expected: string",
    ),
    (
        "blockdev-add",
        {
            "driver": "copy-before-write",
            "node-name": "a",
            "file": "a",
            "target": "b",
            "bitmap": {"node": 1},
        },
        "Invalid parameter type for 'bitmap.node', expected: string",
    ),
    (
        "blockdev-add",
        {
            "driver": "copy-before-write",
            "node-name": "a",
            "file": "a",
            "target": "b",
            "bitmap": {"node": "x", "name": "x", "z": 1},
        },
        "Parameter 'bitmap.z' is unexpected",
    ),
    (
        "blockdev-add",
        {
            "driver": "snapshot-access",
            "node-name": "a",
            "file": {"driver": "raw", "file": {"driver": "null-co", "size": "z"}},
        },
        "Invalid parameter type for 'file.file.size', expected: integer",
    ),
    (
        "blockdev-add",
        {
            "driver": "snapshot-access",
            "node-name": "a",
            "file": {"driver": "raw", "file": {"driver": "null-co", "sizze": "z"}},
        },
        "Parameter 'file.file.sizze' is unexpected",
    ),
    (
        "blockdev-add",
        {"driver": "snapshot-access", "node-name": "a", "file": {"driver": "raw", "file": 7}},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {"node-name": "a", "driver": "rbd", "pool": "p", "image": "i", "server": [{"host": 1}]},
        "Invalid parameter type for 'server[0].host', expected: string",
    ),
    (
        "blockdev-add",
        {
            "node-name": "a",
            "driver": "rbd",
            "pool": "p",
            "image": "i",
            "server": [{"host": "1", "port": "2", "x": 5}],
        },
        "Parameter 'server[0].x' is unexpected",
    ),
    (
        "blockdev-add",
        {"node-name": 1, "driver": 2},
        "Invalid parameter type for 'driver', expected: string",
    ),
    ("blockdev-add", {"node-name": 1}, "Parameter 'driver' is missing"),
    ("blockdev-add", {"driver": None}, "Invalid parameter type for 'driver', expected: string"),
    (
        "transaction",
        {"actions": [{"type": "abort", "data": {"x": 1}}]},
        "Parameter 'actions[0].data.x' is unexpected",
    ),
    (
        "transaction",
        {"actions": [{"type": "abort", "data": {}, "y": 1}]},
        "Parameter 'actions[0].y' is unexpected",
    ),
    (
        "transaction",
        {"actions": [{"type": "blockdev-backup", "data": {}}]},
        "Parameter 'actions[0].data.device' is missing",
    ),
    (
        "transaction",
        {"actions": [{"type": "blockdev-backup", "data": 5}]},
        "Invalid parameter type for 'actions[0].data', expected: object",
    ),
    (
        "transaction",
        {
            "actions": [
                {
                    "type": "block-dirty-bitmap-merge",
                    "data": {"node": "a", "target": "b", "bitmaps": ["x", 5]},
                }
            ]
        },
        "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
    ),
    (
        "transaction",
        {
            "actions": [
                {
                    "type": "block-dirty-bitmap-merge",
                    "data": {"node": "a", "target": "b", "bitmaps": ["x", {"node": "x"}]},
                }
            ]
        },
        "Parameter 'actions[0].data.bitmaps[1].name' is missing",
    ),
    (
        "transaction",
        {"actions": [], "properties": {"completion-mode": "foo"}},
        "Parameter 'completion-mode' does not accept value 'foo'",
    ),
    (
        "transaction",
        {"actions": [], "properties": {"completion-mode": 1}},
        "Invalid parameter type for 'properties.completion-mode', expected: string",
    ),
    (
        "transaction",
        {"actions": [], "properties": []},
        "Invalid parameter type for 'properties', expected: object",
    ),
    ("transaction", {"actions": {}}, "Invalid parameter type for 'actions', expected: array"),
    ("transaction", {"actions": None}, "Invalid parameter type for 'actions', expected: array"),
    ("nbd-server-start", {"addr": {"type": "inet"}}, "Parameter 'addr.data' is missing"),
    (
        "nbd-server-start",
        {"addr": {"type": "inet", "data": {"host": "x"}}},
        "Parameter 'addr.data.port' is missing",
    ),
    (
        "nbd-server-start",
        {"addr": {"type": "foo", "data": {"host": "x"}}},
        "Parameter 'type' does not accept value 'foo'",
    ),
    ("nbd-server-start", {"addr": {"data": {"host": "x"}}}, "Parameter 'addr.type' is missing"),
    (
        "nbd-server-start",
        {
            "addr": {"type": "unix", "data": {"path": "x", "bogus": 1}},
            "max-connections": 4294967296,
        },
        "Parameter 'addr.data.bogus' is unexpected",
    ),
    (
        "nbd-server-start",
        {"addr": {"type": "unix", "data": {"path": "x", "bogus": 1}}, "max-connections": -1},
        "Parameter 'addr.data.bogus' is unexpected",
    ),
    (
        "block-dirty-bitmap-add",
        {"node": "a", "name": "b", "granularity": -1},
        "Parameter 'granularity' expects uint32_t",
    ),
    (
        "block-dirty-bitmap-add",
        {"node": "a", "name": "b", "granularity": 18446744073709551616},
        "Parameter 'granularity' expects uint64",
    ),
    (
        "block-dirty-bitmap-add",
        {"node": "a", "name": "b", "granularity": 1.5},
        "Parameter 'granularity' expects uint64",
    ),
    (
        "object-add",
        {"qom-type": "secret", "id": "a", "data": 1},
        "Invalid parameter type for 'data', expected: string",
    ),
    (
        "object-add",
        {"qom-type": "secret", "id": "a", "data": "x", "format": "f"},
        "Parameter 'format' does not accept value 'f'",
    ),
    (
        "object-add",
        {"qom-type": "secret", "id": 1},
        "Invalid parameter type for 'id', expected: string",
    ),
    (
        "object-add",
        {"qom-type": "authz-list", "id": "z", "rules": [{"match": "*"}]},
        "Parameter 'rules[0].policy' is missing",
    ),
    (
        "object-add",
        {"qom-type": "authz-list", "id": "z", "rules": [{"match": "*", "policy": "x"}]},
        "Parameter 'policy' does not accept value 'x'",
    ),
    (
        "object-add",
        {"qom-type": "thread-context", "id": "z", "cpu-affinity": [1, "2"]},
        "Parameter 'cpu-affinity[1]' expects uint64",
    ),
    (
        "object-add",
        {"qom-type": "thread-context", "id": "z", "cpu-affinity": [1, 70000]},
        "Parameter 'null' expects uint16_t",
    ),
    (
        "object-add",
        {"qom-type": "bogus", "id": "z"},
        "Parameter 'qom-type' does not accept value 'bogus'",
    ),
    ("object-add", {"props": {}}, "Parameter 'qom-type' is missing"),
    ("qom-set", {"path": "/", "property": "x"}, "Parameter 'value' is missing"),
    ("block-export-add", {"type": "nbd", "id": "x"}, "Parameter 'node-name' is missing"),
    (
        "block-export-add",
        {"type": "nbd", "id": "x", "node-name": "z", "bitmaps": ["x", 1]},
        "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
    ),
    (
        "block-export-add",
        {"type": "nbd", "id": "x", "node-name": "z", "allocation-depth": 1},
        "Invalid parameter type for 'allocation-depth', expected: boolean",
    ),
    (
        "block-export-add",
        {"type": "fuse", "id": "x", "node-name": "z", "mountpoint": "m", "allow-other": True},
        "Invalid parameter type for 'allow-other', expected: string",
    ),
    (
        "block-export-add",
        {"type": "vduse-blk", "id": "x", "node-name": "z", "name": "m", "num-queues": 65536},
        "Parameter 'num-queues' expects uint16_t",
    ),
    (
        "chardev-add",
        {
            "id": "a",
            "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {"pat": 1}}}},
        },
        "Parameter 'backend.data.addr.data.path' is missing",
    ),
    (
        "chardev-add",
        {"id": "a", "backend": {"type": "file", "data": {"out": 1}}},
        "Invalid parameter type for 'backend.data.out', expected: string",
    ),
    (
        "chardev-add",
        {"id": "a", "backend": {"type": "bogus", "data": {"out": 1}}},
        "Parameter 'type' does not accept value 'bogus'",
    ),
    (
        "chardev-add",
        {"id": "a", "backend": {"type": "null"}},
        "Parameter 'backend.data' is missing",
    ),
    (
        "block-commit",
        {"device": "x", "auto-finalize": "no"},
        "Invalid parameter type for 'auto-finalize', expected: boolean",
    ),
    (
        "blockdev-mirror",
        {"device": "x", "target": "y", "sync": "foo", "auto-finalize": "no"},
        "Parameter 'sync' does not accept value 'foo'",
    ),
    (
        "blockdev-create",
        {"job-id": "x", "options": {"driver": "qcow2", "size": 1}},
        "Parameter 'options.file' is missing",
    ),
    (
        "blockdev-create",
        {"job-id": "x", "options": {"driver": "qcow2", "size": -1, "file": "a", "x": 1}},
        "Parameter 'options.x' is unexpected",
    ),
    (
        "blockdev-create",
        {"job-id": "x", "options": {"driver": "qcow2", "size": "1", "file": "a", "x": 1}},
        "Parameter 'options.size' expects uint64",
    ),
    (
        "blockdev-create",
        {
            "job-id": "x",
            "options": {
                "driver": "qcow2",
                "size": 1,
                "file": "a",
                "encrypt": {"format": "luks", "cipher-alg": "x"},
            },
        },
        "Parameter 'cipher-alg' does not accept value 'x'",
    ),
    (
        "blockdev-create",
        {"job-id": "x", "options": {"driver": "vmdk", "size": 1, "file": "a", "extents": ["a", 1]}},
        "Invalid parameter type for 'null', expected: BlockdevRef",
    ),
    (
        "blockdev-reopen",
        {"options": [{"driver": "null-co", "size": "a"}]},
        "Invalid parameter type for 'options[0].size', expected: integer",
    ),
    (
        "blockdev-reopen",
        {"options": ["a"]},
        "Invalid parameter type for 'options[0]', expected: object",
    ),
    ("query-block", {"x": 1}, "Parameter 'x' is unexpected"),
    ("qmp_capabilities", {"enable": ["foo"]}, "Parameter 'null' does not accept value 'foo'"),
    (
        "x-blockdev-set-iothread",
        {"node-name": "a", "iothread": 5},
        "Invalid parameter type for 'iothread', expected: StrOrNull",
    ),
    ("x-blockdev-set-iothread", {"node-name": "a"}, "Parameter 'iothread' is missing"),
    (
        "x-blockdev-set-iothread",
        {"node-name": "a", "iothread": None, "force": 3},
        "Invalid parameter type for 'force', expected: boolean",
    ),
    (
        "query-named-block-nodes",
        {"flat": None},
        "Invalid parameter type for 'flat', expected: boolean",
    ),
    (
        "query-blockstats",
        {"query-nodes": "x"},
        "Invalid parameter type for 'query-nodes', expected: boolean",
    ),
]

ACCEPTED: Final[list[tuple[str, dict[str, Any]]]] = [
    ("block_resize", {"size": -9223372036854775808}),
    ("qom-set", {"path": "/", "property": "x", "value": None}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "raw"}}),
]
"""Arguments that pass the check; what the commands themselves say of them is another matter."""

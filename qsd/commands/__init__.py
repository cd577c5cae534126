# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The QMP commands: which function carries out which command.

The functions are imported when they are first called.  A command that the schema has and this table
lacks is one that we do not provide yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HANDLERS: Final[Mapping[str, str]] = {
    "block-commit": "block_jobs:block_commit",
    "block-dirty-bitmap-add": "bitmap:block_dirty_bitmap_add",
    "block-dirty-bitmap-clear": "bitmap:block_dirty_bitmap_clear",
    "block-dirty-bitmap-disable": "bitmap:block_dirty_bitmap_disable",
    "block-dirty-bitmap-enable": "bitmap:block_dirty_bitmap_enable",
    "block-dirty-bitmap-merge": "bitmap:block_dirty_bitmap_merge",
    "block-dirty-bitmap-remove": "bitmap:block_dirty_bitmap_remove",
    "block-export-add": "export:block_export_add",
    "block-export-del": "export:block_export_del",
    "block-job-cancel": "job:block_job_cancel",
    "block-job-complete": "job:block_job_complete",
    "block-job-dismiss": "job:block_job_dismiss",
    "block-job-finalize": "job:block_job_finalize",
    "block-job-pause": "job:block_job_pause",
    "block-job-resume": "job:block_job_resume",
    "block-job-set-speed": "job:block_job_set_speed",
    "block-set-write-threshold": "block:block_set_write_threshold",
    "block-stream": "block_jobs:block_stream",
    "block_resize": "block:block_resize",
    "blockdev-add": "block:blockdev_add",
    "blockdev-backup": "backup:blockdev_backup",
    "blockdev-create": "block:blockdev_create",
    "blockdev-del": "block:blockdev_del",
    "blockdev-mirror": "block_jobs:blockdev_mirror",
    "blockdev-reopen": "block:blockdev_reopen",
    "blockdev-snapshot": "snapshot:blockdev_snapshot",
    "blockdev-snapshot-delete-internal-sync": "snapshot:blockdev_snapshot_delete_internal_sync",
    "blockdev-snapshot-internal-sync": "snapshot:blockdev_snapshot_internal_sync",
    "blockdev-snapshot-sync": "snapshot:blockdev_snapshot_sync",
    "change-backing-file": "snapshot:change_backing_file",
    "chardev-add": "chardev:chardev_add",
    "chardev-change": "chardev:chardev_change",
    "chardev-remove": "chardev:chardev_remove",
    "chardev-send-break": "chardev:chardev_send_break",
    "drive-backup": "backup:drive_backup",
    "drive-mirror": "block_jobs:drive_mirror",
    "job-cancel": "job:job_cancel",
    "job-complete": "job:job_complete",
    "job-dismiss": "job:job_dismiss",
    "job-finalize": "job:job_finalize",
    "job-pause": "job:job_pause",
    "job-resume": "job:job_resume",
    "nbd-server-add": "nbd_server:nbd_server_add",
    "nbd-server-remove": "nbd_server:nbd_server_remove",
    "nbd-server-start": "nbd_server:nbd_server_start",
    "nbd-server-stop": "nbd_server:nbd_server_stop",
    "object-add": "qom:object_add",
    "object-del": "qom:object_del",
    "qom-get": "qom:qom_get",
    "qom-list": "qom:qom_list",
    "qom-list-properties": "qom:qom_list_properties",
    "qom-list-types": "qom:qom_list_types",
    "qom-set": "qom:qom_set",
    "query-block": "block:query_block",
    "query-block-exports": "export:query_block_exports",
    "query-block-jobs": "job:query_block_jobs",
    "query-blockstats": "block:query_blockstats",
    "query-chardev": "chardev:query_chardev",
    "query-chardev-backends": "chardev:query_chardev_backends",
    "query-commands": "control:query_commands",
    "query-jobs": "job:query_jobs",
    "query-named-block-nodes": "block:query_named_block_nodes",
    "query-qmp-schema": "introspect:query_qmp_schema",
    "query-version": "control:query_version",
    "quit": "control:quit_",
    "ringbuf-read": "chardev:ringbuf_read",
    "ringbuf-write": "chardev:ringbuf_write",
    "transaction": "transaction:transaction",
    "x-blockdev-amend": "block:x_blockdev_amend",
    "x-blockdev-change": "block:x_blockdev_change",
    "x-blockdev-set-iothread": "block:x_blockdev_set_iothread",
    "x-debug-block-dirty-bitmap-sha256": "bitmap:x_debug_block_dirty_bitmap_sha256",
    "x-debug-query-block-graph": "block:x_debug_query_block_graph",
}
"""From a command's name to "module:function" in this package; keep it sorted by name."""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The order in which QEMU writes the members of a JSON object.

It is neither the declared order nor that of insertion: QEMU keeps members in a hash table and walks
its buckets.  Programs should not care; people who compare texts do, and ``json:{}`` file names
carry the order into names that others store.

The table was observed, not computed: the daemon echoes the ``id`` of a request, so sending one
object with all names shows their order, and sending them backwards shows which share a bucket.
Within a bucket the member that was inserted last comes first.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUCKETS: Final = """
refcount-cache-size abstract share cache.no-flush seconds|sev-guest ivgen-alg|main-header
avg_flush_latency_ns|iotype|ok no-flush|toolsversion
can-bus|ide|iops_rd|length|remote|resize|vmstate_load|x-iops-total blockdev-snapshot
bitmap|max-connections unmap_operations streamOptimized colo-compare|commit|compat|compress
buslogic|null-aio|server.abstract avg_rd_queue_depth|detect_zeroes|icount aes|num-queues flags|flush
auto-finalize|empty_image_prepare|indev|l2_update_compressed|prealloc-context break-snapshot
bps-read-max-length|new_state|null-co block-job|growable|timestamp|vm-clock-nsec actions
host_device|numeric default-value|image-end-offset io-status
cluster_free|iops-read-max-length|pending
blklogwrites|min_rd_latency_ns|pwritev_rmw_after_tail|x-bps-read-max unmap_merged
bind|bins|refcount-block passwordid reserve name|rng-random on|opt-write-zero|qcow
ctrl-ctrl|exact|test description|io_uring location|vhost-user-blk max_flush_latency_ns write_aio
set-state active|filter-buffer|none-crc32c command|device|input-linux force|locking server.mptcp
ctrl-scrolllock auto|filter-replay discard-bytes-ok|str|x-iops-read-max-length password-secret
direct monolithicFlat abort|array|pool|port safe|write-blocking parent|refcount-table session-file
plain compressed-clusters|server.to|x-origin always|enum|memory-backend-epc bps-read-max
bps-total|poll-shrink top-node read_compressed cache-size zlib flush_total_time_ns|implements
qcow2|query-nodes discard-nb-ok|memory-backend-memfd|reduced-phys-bits full|fuse|hash-alg|url
authz-listfile|backing-image|log-super-update-interval|quorum|sanity-check|serial|xts
allow-other|wr_highest_offset mirror|on-success|wr_total_time_ns dmg
backing.driver|concluded|dbus-vmstate|iters|x-bps-total-max-length read-zeroes|twofish-256 msg
compression-type|n|nospace iops-total-max-length compressed|current-progress|glob
handle|l1_grow_activate_table stop active-l1|active-l2|refblock_alloc element-type
cookie-secret|incremental l1_update|qom-type QMP|x-perf inject-error|recording|vsock
blockdev-snapshot-sync|immediately iops-total cbitpos|height|tls-creds-x509
boolean|server.cid|server.str cid|replaces
failed_rd_operations|failed_wr_operations|lazy-refcounts|log-size|pwritev_zero log server.path
encrypt.format cluster_alloc_bytes|date-sec|s filter-redirector|legacyESX on-target-error
bitmaps|once aes-128|loaded|locked|read-pattern shared-perm grouped|spiceport
cipher-alg|iops-write-max block-dirty-bitmap-merge|prealloc
human-readable-text|pass-discard-snapshot|refcount-bits pwritev_rmw_tail auto-dismiss
buf-size|perm|persistent|server.host|server.port max_queue_size image-node-name|mptcp
file.driver blkdebug|start|state|stats|stdio|thread-context absolute-paths|tag|vvfat behind
backend|l2_alloc_cow_read vnet_hdr_support bochs|bps-write fat-type
block-backend|cpu-affinity|cryptodev-backend-lkcf|filter-rewriter aio-max-batch|chardev|keyid
background aligned-accesses authz-pam|completion-mode|wr_merged cow_read|poll-grow|threads
detect-zeroes|log-sector-size|server.tight parent-cid uuid netdev|proxy-username|repeat|report|v2
bps-total-max|wr_bytes|x-iops-size failed_unmap_operations|pwritev|timed_stats keyslot reftable_load
iops_max_length|iter-time|pwritev_rmw_after_head exec-oob|removable busy reftable_grow cast5-128|fd
allocation-depth|if|iv vmstate_save in-use edges|total-clusters logappend
filter-node-name|notify_dev|zero len|lun|memory adapter-type|y-origin
service|shift-shift|snapshot-load|writeback ipv4|ipv6|plain64 avg_wr_latency_ns|failed|grab-toggle
failed_flush_operations|max-write-zero|x-iops-total-max-length bps_max_length|pass-discard-other
extent-size-hint|offset corruptions|image data-file|local gluster version iops_wr
can-host-socketcan|mountpoint pwritev_done ivgen-hash-alg|memory-backend-ram|readahead limits
refblock_alloc_switch_table|refblock_load group socket|x-check-cache-dropped
memory-backend-file|snapshot-delete string qed pef-guest|x-bps-read-max-length
backing|x-use-canonical-path-for-ramblock-id interval_length|snapshot-save cbc|ro
ftp|inactive|status|writable account_invalid|corruptions-fixed|created|force-size|throttle-group
check-errors|hugetlbsize|max-transfer msmouse backing-filename-format|children|cols|conf
fqdn|portal|secondary iser inactive-l2|luks|x-bps-read class|cloop|meta-meta|template dir|node-name
block-dirty-bitmap-remove|max_wr_latency_ns|server.ipv6|throttle interleave
addr|bps-write-max|capabilities|primary|server.numeric ssh header-digest readonly
cache-clean-interval existing|l1_shrink_write_table native|paused initiator-name
micro|minor|x-bps-write-max-length nfs|snapshot bps_wr_max_length base64|host
date-nsec|encrypt.key-secret|timeout file.locking qemu host-key-check x-iops-read
iops-size|iops_size|take-child-perms snapshot-table|write-zeroes backing_file_depth
l1_grow_alloc_table driver|ftps clipboard|granularity aborting count|required|tn3270 fatal|unix
iscsi leaks|luks2|running host-nodes constant|pty|tcp-syn-count cluster_alloc braille|reference
create-type|rd_total_time_ns enable|mode avg_rd_latency_ns|path x-iops-read-max block-size|ecb
driver-specific|outdev|secret speed block-dirty-bitmap-enable invalid_unmap_operations|x-bps-total
nvme|snapshots|variants blkverify|ignore|key-offset|logfile
completion-errors|flush_operations|prealloc-threads backup|queue|ret-type|x-vfio-user-server
l2-cache-entry-size|rbd|x-remote-object log-append|udp|width base-node
blockdev-snapshot-internal-sync|total-progress iothread cryptodev-backend-builtin|rows|typename
opened iops-read|pass-discard-request reftable_update mux unmap|wr_operations
discard-nb-failed|x-bps-total-max iops-write-max-length|kernel-hashes definition|dh-cert-file
endpoint|filter-dump|x-image vhdx max_rd_latency_ns|mouse leaks-fixed|refblock_alloc_hookup
base|x-iops-write-max scrolllock inactive-l1|max-chunk|refblock_alloc_write|unmap_bytes|websocket
snapshot-file iops-write|write_compressed rx frontend-open|iops_rd_max_length execute
min_flush_latency_ns|proxy-password-secret|rng-builtin bps_wr_max|compare_timeout
allocated-clusters|bps_rd_max_length|default overlap-check config|insert|open
bitmap-directory|cephx|new-secret|on-source-error|sectors-count drv|object|refblock_update|utf8
virtual-size l2_load members rd_merged filename|readahead-size append drive-backup
cluster-size|inserted|rewrite-corrupted|rng-egd|use-copy-range number|property
old-secret|preallocation|size|sync|username iops_rd_max|rd_bytes
filter-mirror|namespace|snapshot-node-name grab_all|tcp alternate|console export|package|wctablet
primary_in|twoGbMaxExtentSparse bps_max|fully-allocated|thread-pool-max|thread-pool-min
block-dirty-bitmap-clear|essiv auto-read-only|backing-fmt read_backing_aio
external|l2-cache-size|sha256 max-workers|off|serpent-192
authz-simple|reconnect-delay|wr_latency_histogram crc32c-none|x-iops-write enospc|iops|tls-authz
bps-total-max-length|format|unmap_total_time_ns child|encrypt|read des|queues|sector|server
serpent-128 read-only cluster_alloc_space|refblock_alloc_write_table builtin
bps_wr|dbus|encryption-format keep-alive before hugetlb amend actual-size|floppy
block-state-zero|merge bitmap-mode|data-file-raw|format-specific|nbd|poll-max-ns
block-status|iops-read-max|table-size invalid_flush_operations
cbw-timeout|input-barrier|node|none|prealloc-align full-backing-filename|on-cbw-error|padding-alg
evdev|event|l1_shrink_free_l2_clusters|server.type account_failed|l1_grow_write_table
opt-discard|telnet|write-unchanged copy-on-read dynamic
allow-oob|unshare-child-perms|write|x-dirty-bitmap cached tls-creds-anon aes-256
label|microseconds|vduse-blk known_hosts|volume idle_time_ns|ready|rules
bps_rd_max|cipher-mode|deny|desc|dump|standby vdi stripes pmem|server.ipv4
block-dirty-bitmap-add|lsilogic hwversion|secret_keyring|verify-peer slots|subformat
bps-read|host_cdrom|shutting-down cookie|testdev block-dirty-bitmap-disable|properties qdev
ctr|vote-threshold identity|sev-device nocow|nodes|tray_open payload-offset|vm-clock-sec|waiting
case|tls-creds alt-alt|backing-file|backing_file|write_threshold dirty-bitmaps|ringbuf reason|return
break-guest-write|on-error|x-bps-write aio|bps-write-max-length|cor_write|cow_write individual
disabled|refblock_update_part copy-before-write parallel blkreplay|qemu-vdagent
encrypted|job-id|twoGbMaxExtentFlat 3des|bps|debug|depth|devid|writethrough to
flush_to_os|sha224|sha384 transport operation queue-size|value bps_rd|hard|hash
create|in|twofish-192|x-bps-write-max null sector-num type extents
expired_scan_cycle|json-type|nodelay meta-type|oob|policy|qtest
cache.direct|open-timeout|raw|twofish-128 latency-ns flush_to_disk alg|all|cache authz-list|discard
action|iops-total-max fixed-iothread|md5|overlay|priority|tls-hostname|zeroed-grain drop-cache
pwritev_rmw_head|server.keep-alive read_aio parallels|prealloc-size|seal arguments
present|reconnect|replication cryptodev-backend|id-list iops_max|l2_update|rd_operations
consistent-read|l2_alloc_write|sslverify|write-threshold preallocate|top http
avg_wr_queue_depth|stream s390-pv-guest cryptodev-vhost-user|master-key-iters|unaligned-accesses rw
secondary_in bottom|int|top-id force-share|never aes-192|pretty tight fifo|file signal
arg-type|page-cache-size user min_wr_latency_ns|options node-affinity|spicevmc boundaries|position
iops_wr_max_length logical-block-size backing-filename|falloc corrupt|discard-data
blockdev-backup|sha1 x-iops-total-max major|match inconsistent|preferred|tls-creds-psk
amount-exceeded .driver|fragmented-clusters|refresh|ripemd160|tls-cipher-suites
block-driver|copy-mode id|mem-path|metadata|pr-manager-helper
invalid_rd_operations|invalid_wr_operations interval errno|error|snapshot-access https|wait
target|values|zstd iops_wr_max|out vm-state-size features|flat|pr-manager client|inet
auth-client-required|key-secret undefined fixed|sha512 dirty-flag|max-discard|v3|vc
x-iops-write-max-length extended-l2|rd_latency_histogram flush_latency_histogram
data|refblock_alloc_write_blocks canbus|crc32c|maxlen|monolithicSparse|vpc
align|allow|main-loop|pipe|serpent-256 tx|vmdk
"""
"""Every member name of the QMP schema and dotted ones of ``json:`` names; "|" joins a bucket."""


@functools.cache
def _ranks() -> Mapping[str, int]:
    return {
        name: rank for rank, bucket in enumerate(_BUCKETS.split()) for name in bucket.split("|")
    }


def ordered_names(names: list[str]) -> list[str]:
    """Return member names as QEMU would walk them, names that it does not know last.

    Args:
        names: In the order of insertion.
    """
    ranks = _ranks()
    known = [name for name in reversed(names) if name in ranks]
    known.sort(key=ranks.__getitem__)
    if len(known) < len(names):
        known += [name for name in names if name not in ranks]
    return known


def ordered(value: Any) -> Any:
    """Return a copy of a JSON value with the members of all its objects in QEMU's order."""
    if not isinstance(value, (dict, list)):
        return value
    top = _sorted_copy(value)
    # Without recursion, as values may be nested deeper than the interpreter allows.
    todo = [top]
    while todo:
        container = todo.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for place, item in items:
            if isinstance(item, (dict, list)) and item:
                container[place] = copied = _sorted_copy(item)
                todo.append(copied)
    return top


def _sorted_copy(value: Any) -> Any:
    if isinstance(value, list):
        return value.copy()
    if len(value) < 2:
        return dict(value)
    return {name: value[name] for name in ordered_names(list(value))}

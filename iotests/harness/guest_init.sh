#!/bin/busybox sh
# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
#
# The only program of the Linux guest.  As the first process it shows the disk that it finds, lets
# workers carry out their plans side by side, waits for the disk to grow, and powers off.  Each line
# it writes to the serial line begins with its topic; BAD is what must never be seen.
#
# A plan (/plan/NUMBER) has one operation per line: its kind, offset and length in bytes, and what
# it needs besides.  All data come from /pattern, from the offset that the plan names.

disk=/dev/vda
queue=/sys/block/vda/queue

prepare() {
    /bin/busybox mkdir -p /dev /proc /sys /tmp
    /bin/busybox --install -s /bin
    mount -t devtmpfs dev /dev
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    for module in $(cat /modules); do
        insmod "/lib/$module.ko" || echo "BAD module $module"
    done
}

describe() {
    echo "SIZE $(cat /sys/block/vda/size)"
    echo "QUEUES $(ls /sys/block/vda/mq | wc -l)"
    for name in logical_block_size write_cache discard_max_bytes write_zeroes_max_bytes; do
        echo "LIMIT $name $(cat "$queue/$name")"
    done
}

# put OFFSET LENGTH PATTERN-OFFSET FLAGS MORE...
put() {
    dd if=/pattern of=$disk bs="$2" count=1 iflag=skip_bytes skip="$3" \
        oflag="seek_bytes$4" seek="$1" conv="notrunc$5" status=none
}

# get OFFSET LENGTH FLAGS
get() {
    dd if=$disk bs="$2" count=1 iflag="skip_bytes,fullblock$3" skip="$1" status=none
}

# drop OFFSET LENGTH FLAG: the tool that knows -z, not busybox's; it warns that data are lost.
drop() {
    /usr/sbin/blkdiscard -f -o "$1" -l "$2" ${3:+"$3"} $disk 2>/dev/null
}

# expect NAME DIGEST: compares what comes in.
expect() {
    found=$(sha256sum | cut -d ' ' -f 1)
    [ "$found" = "$2" ] || echo "BAD $1: $found instead of $2"
}

operation() {
    case $1 in
    direct) put "$2" "$3" "$4" ,direct "" ;;
    cached) put "$2" "$3" "$4" "" "" ;;
    durable) put "$2" "$3" "$4" "" ,fsync ;;
    zero) drop "$2" "$3" -z ;;
    discard) drop "$2" "$3" ;;
    check) get "$2" "$3" ,direct | expect "read $2 $3" "$4" ;;
    *) false ;;
    esac
}

work() {
    done=0
    while read -r line; do
        # shellcheck disable=SC2086
        operation $line || echo "BAD operation $line: $?"
        done=$((done + 1))
        [ $((done % 5)) != 0 ] || echo "AT $1 $done"
    done <"/plan/$1"
    echo "WORKED $1 $done"
}

# Each worker stays on one processor, and so on one queue.
work_together() {
    for plan in /plan/*; do
        number=${plan##*/}
        taskset "$((1 << number % 2))" /init "$number" &
    done
    wait
    for line in $(seq 0 1); do
        sum=$(sed -n "s/^.*: *\([0-9]*\) *\([0-9]*\) .*virtio0-req\.$line\$/\1+\2/p" /proc/interrupts)
        [ "$((sum))" -gt 0 ] && echo "INTERRUPTED by queue $line"
    done
    sync
    echo 3 >/proc/sys/vm/drop_caches
    cat $disk | expect "the disk" "$(cat /digest)"
}

# The new end takes a write, too.
wait_for_growth() {
    before=$(cat /sys/block/vda/size)
    echo "READY to grow"
    for _ in $(seq 1 1000); do
        after=$(cat /sys/block/vda/size)
        if [ "$after" != "$before" ]; then
            echo "SIZE $after"
            put "$((after * 512 - 4096))" 4096 0 ,direct ""
            return
        fi
        usleep 100000
    done
    echo "BAD: the disk did not grow"
}

if [ "$#" != 0 ]; then
    work "$1"
    exit
fi
prepare
describe
work_together
[ ! -e /grow ] || wait_for_growth
dmesg | grep 'vda.*error' | sed 's/^/BAD /'
echo "END"
poweroff -f

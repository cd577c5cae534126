#!/bin/sh
# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
#
# Serve an image read-only for as long as qemu-img copies it out: daemon in the background, a pidfile
# to find it, and its absence as the sign that it ended.
#
#   examples/convert_over_nbd.sh IMAGE.qcow2 COPY.raw        (QSD=COMMAND names another daemon)

set -eu
image=$1 copy=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# --daemonize returns when the export is there, or fails with the daemon's message.
${QSD:-qemu-storage-daemon} --daemonize --pidfile "$folder/pid" \
    --blockdev "qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=$image" \
    --nbd-server "addr.type=unix,addr.path=$folder/nbd.sock" \
    --export nbd,id=disk,node-name=disk

qemu-img convert -p -f raw -O raw "nbd+unix:///disk?socket=$folder/nbd.sock" "$copy"

kill "$(cat "$folder/pid")"
while [ -e "$folder/pid" ]; do sleep 0.1; done

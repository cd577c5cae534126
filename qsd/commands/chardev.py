# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands about character devices (QMP reference, "Character devices")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.ringbuf import RingbufChardev
    from qsd.commands.context import Context
    from qsd.qapi.model import Empty
    from qsd.qapi.schema.char import (
        ChardevAddArguments,
        ChardevBackendInfo,
        ChardevChangeArguments,
        ChardevInfo,
        ChardevRemoveArguments,
        ChardevReturn,
        ChardevSendBreakArguments,
        RingbufReadArguments,
        RingbufWriteArguments,
    )


async def chardev_add(ctx: Context, args: ChardevAddArguments) -> ChardevReturn:
    """Make a device (QMP reference, "chardev-add")."""
    return await ctx.chardevs.add(args.id, args.backend)


async def chardev_change(ctx: Context, args: ChardevChangeArguments) -> ChardevReturn:
    """Put another backend under a name (QMP reference, "chardev-change")."""
    return await ctx.chardevs.change(args.id, args.backend)


async def chardev_remove(ctx: Context, args: ChardevRemoveArguments) -> None:
    """Remove a device (QMP reference, "chardev-remove")."""
    await ctx.chardevs.remove(args.id)


async def chardev_send_break(ctx: Context, args: ChardevSendBreakArguments) -> None:
    """Send a break (QMP reference, "chardev-send-break")."""
    ctx.chardevs.send_break(args.id)


async def query_chardev(ctx: Context, args: Empty) -> list[ChardevInfo]:
    """List the devices (QMP reference, "query-chardev")."""
    del args
    return ctx.chardevs.query()


async def query_chardev_backends(ctx: Context, args: Empty) -> list[ChardevBackendInfo]:
    """List the kinds of devices (QMP reference, "query-chardev-backends")."""
    del args
    return ctx.chardevs.query_backends()


async def ringbuf_write(ctx: Context, args: RingbufWriteArguments) -> None:
    """Write to a ring buffer (QMP reference, "ringbuf-write")."""
    device = _ringbuf(ctx, args.device)
    data = args.data.encode("utf-8", "surrogatepass")
    if args.format == "base64":
        from qsd.util.base64_text import decode_base64

        data = decode_base64(data)
    device.put(data)


async def ringbuf_read(ctx: Context, args: RingbufReadArguments) -> str:
    """Read from a ring buffer (QMP reference, "ringbuf-read")."""
    device = _ringbuf(ctx, args.device)
    if args.size <= 0:
        raise QmpError("size must be greater than zero")
    data = device.take(args.size)
    if args.format == "base64":
        from binascii import b2a_base64

        return b2a_base64(data, newline=False).decode("ascii")
    # As a C string, which ends at a NUL; what is no UTF-8 becomes U+FFFD on the way out.
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _ringbuf(ctx: Context, label: str) -> RingbufChardev:
    from qsd.chardev.ringbuf import RingbufChardev

    device = ctx.chardevs.find(label)
    if device is None:
        raise QmpError(f"Device '{label}' not found")
    if not isinstance(device, RingbufChardev):
        raise QmpError(f"{label} is not a ringbuf device")
    return device

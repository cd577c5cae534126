# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Secrets that the kernel keeps for us (keyctl(2), KEYCTL_READ)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.errors import QmpError
from qsd.objects.base import Property, attribute
from qsd.objects.secret import SecretCommon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.objects.base import Surroundings

#: The operation "read a key's payload" (keyctl(2)).
_KEYCTL_READ = 11

#: The number of keyctl(2) by machine (syscalls(2)); the rest has that of asm-generic/unistd.h.
_KEYCTL_NUMBERS: Final[Mapping[str, int]] = {
    "x86_64": 250, "i386": 288, "i686": 288, "ppc64": 271, "ppc64le": 271, "s390x": 280,
    "armv7l": 311,
}  # fmt: skip
_GENERIC_KEYCTL_NUMBER = 219

#: Largest payload taken, bytes: the kernel's own bound on the payload of a user key (keyctl(2)).
_MAX_PAYLOAD = 32767


class SecretKeyring(SecretCommon):
    """A secret that is read from the kernel's key ring.

    Attributes:
        serial: The key's serial number.
    """

    TYPE = "secret_keyring"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (attribute("serial", "int32_t"),)

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.serial = 0

    def _load(self) -> bytes:
        """Return the key's payload."""
        if self.serial == 0:
            raise QmpError("'serial' should not be equal to 0")
        try:
            return _read_key(self.serial)
        except OSError as exc:
            raise QmpError(
                f"Unable to read serial key {self.serial & 0xFFFFFFFF:08x}: {exc.strerror}"
            ) from None


def _read_key(serial: int) -> bytes:
    """Return the payload of a key.

    Raises:
        OSError: The kernel refuses.
    """
    import ctypes

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    number = _KEYCTL_NUMBERS.get(os.uname().machine, _GENERIC_KEYCTL_NUMBER)
    buffer = ctypes.create_string_buffer(_MAX_PAYLOAD)
    length = syscall(
        ctypes.c_long(number),
        ctypes.c_int(_KEYCTL_READ),
        ctypes.c_int32(serial),
        buffer,
        ctypes.c_size_t(_MAX_PAYLOAD),
    )
    if length < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return buffer.raw[: min(length, _MAX_PAYLOAD)]

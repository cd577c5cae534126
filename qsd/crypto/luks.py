# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The LUKS header, version 1 (LUKS On-Disk Format Specification, version 1.2.3).

::

    header, 592 bytes | key slot 0 | ... | key slot 7 | payload: the encrypted sectors
                        master key, split into stripes, encrypted with a password's key

Nothing here does I/O.  Who opens a volume reads the header, then the material of one active slot
after the other, and tries each (:func:`unlock`).  Deriving keys takes long by intention: do it in a
worker thread.

What a header says is checked as a whole by :meth:`Header.check` before anything is done with it, in
the C daemon's order and words.
"""

from __future__ import annotations

import struct
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from qsd.crypto import afsplit, kdf
from qsd.crypto.cipher import ALGORITHMS
from qsd.crypto.ivgen import essiv_algorithm
from qsd.crypto.volume import CipherSpec, Volume
from qsd.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes; the unit of offsets in the header.
SECTOR: Final = 512
MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
SLOTS: Final = 8
#: "LUKS_STRIPES": pieces that a key is split into.
STRIPES: Final = 4000
#: Bytes; "LUKS_ALIGN_KEYSLOTS": where key material may start, and so the space of the header.
ALIGNMENT: Final = 4096
#: Bytes of salts and of the master key's digest.
SALT_LENGTH: Final = 32
DIGEST_LENGTH: Final = 20
#: "LUKS_KEY_ENABLED" and "LUKS_KEY_DISABLED".
ENABLED: Final = 0x00AC71F3
DISABLED: Final = 0x0000DEAD
#: Iterations; fewer are never used for new keys, as in the C daemon.
MIN_ITERATIONS: Final = 1000
#: Iterations that a header may ask for, so that a hostile one costs minutes at worst, in a worker
#: thread.  Half a minute of the fastest machine, where two seconds are usual.
MAX_ITERATIONS: Final = 1 << 26
#: Bytes; the longest master key: two keys of 256 bits.
MAX_KEY_LENGTH: Final = 64

#: "LUKS phdr": magic, version, cipher-name, cipher-mode, hash-spec, payload-offset (sectors),
#: key-bytes, mk-digest, mk-digest-salt, mk-digest-iterations, uuid.
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
#: "LUKS key slot": active, iterations, salt, key-material-offset (sectors), stripes.
_SLOT: Final = struct.Struct(">II32sII")
#: Bytes of header and slots.
HEADER_LENGTH: Final = _HEADER.size + SLOTS * _SLOT.size

_MODES: Final = ("ecb", "cbc", "xts", "ctr")
_IVGENS: Final = ("plain", "plain64", "essiv")
#: How the C daemon spells the ciphers that essiv works with.
_ESSIV_FAMILIES: Final = {"aes": "AES", "serpent": "Serpent", "twofish": "Twofish"}


class Slot:
    """One key slot.

    Attributes:
        state: ENABLED or DISABLED.
        iterations: Of the key derivation; 0 in a disabled slot.
        salt: Of the key derivation.
        offset_sectors: Where the key material starts.
        stripes: Pieces of the split key.
    """

    __slots__ = ("iterations", "offset_sectors", "salt", "state", "stripes")

    def __init__(
        self,
        state: int = DISABLED,
        iterations: int = 0,
        salt: bytes = bytes(SALT_LENGTH),
        offset_sectors: int = 0,
        stripes: int = STRIPES,
    ) -> None:
        self.state = state
        self.iterations = iterations
        self.salt = salt
        self.offset_sectors = offset_sectors
        self.stripes = stripes

    @property
    def is_active(self) -> bool:
        """Whether a password opens the slot."""
        return self.state == ENABLED

    @property
    def offset(self) -> int:
        """Where the key material starts, in bytes."""
        return self.offset_sectors * SECTOR


class Header:
    """A header; attributes have the names of the specification.

    Attributes:
        cipher_name: e.g. "aes".
        cipher_mode: e.g. "xts-plain64".
        hash_spec: e.g. "sha256".
        payload_offset_sectors: Where the payload starts.
        key_bytes: Length of the master key.
        mk_digest, mk_digest_salt, mk_digest_iterations: What the master key is checked with.
        uuid: Of the volume.
        slots: The key slots.
    """

    __slots__ = (
        "cipher_mode", "cipher_name", "hash_spec", "key_bytes", "mk_digest",
        "mk_digest_iterations", "mk_digest_salt", "payload_offset_sectors", "slots", "uuid",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cipher_name = ""
        self.cipher_mode = ""
        self.hash_spec = ""
        self.payload_offset_sectors = 0
        self.key_bytes = 0
        self.mk_digest = bytes(DIGEST_LENGTH)
        self.mk_digest_salt = bytes(SALT_LENGTH)
        self.mk_digest_iterations = 0
        self.uuid = ""
        self.slots = [Slot() for _ in range(SLOTS)]

    @property
    def payload_offset(self) -> int:
        """Where the payload starts, in bytes."""
        return self.payload_offset_sectors * SECTOR

    @property
    def material_length(self) -> int:
        """Bytes of a slot's key material."""
        return self.key_bytes * STRIPES

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Read a header from :data:`HEADER_LENGTH` bytes, and check it.

        Raises:
            QmpError: It is none, or none that can be used.
        """
        fields = _HEADER.unpack_from(data)
        if fields[0] != MAGIC:
            raise QmpError("Volume is not in LUKS format")
        if fields[1] != VERSION:
            raise QmpError(f"LUKS version {fields[1]} is not supported")
        header = cls()
        header.cipher_name = _text(fields[2], "cipher name")
        header.cipher_mode = _text(fields[3], "cipher mode")
        header.hash_spec = _text(fields[4], "hash spec")
        header.payload_offset_sectors, header.key_bytes = fields[5], fields[6]
        header.mk_digest, header.mk_digest_salt = fields[7], fields[8]
        header.mk_digest_iterations = fields[9]
        header.uuid = fields[10].split(b"\0")[0].decode(errors="replace")
        header.slots = [
            Slot(*_SLOT.unpack_from(data, _HEADER.size + index * _SLOT.size))
            for index in range(SLOTS)
        ]
        header.check()
        return header

    def pack(self) -> bytes:
        """Return the header as it is stored."""
        parts = [
            _HEADER.pack(
                MAGIC,
                VERSION,
                self.cipher_name.encode(),
                self.cipher_mode.encode(),
                self.hash_spec.encode(),
                self.payload_offset_sectors,
                self.key_bytes,
                self.mk_digest,
                self.mk_digest_salt,
                self.mk_digest_iterations,
                self.uuid.encode(),
            )
        ]
        parts.extend(
            _SLOT.pack(slot.state, slot.iterations, slot.salt, slot.offset_sectors, slot.stripes)
            for slot in self.slots
        )
        return b"".join(parts)

    def check(self) -> None:
        """Refuse a header that contradicts itself.

        Raises:
            QmpError: It does.
        """
        header_sectors = ALIGNMENT // SECTOR
        if self.payload_offset_sectors < header_sectors:
            raise QmpError("LUKS payload is overlapping with the header")
        if not self.mk_digest_iterations:
            raise QmpError("LUKS key iteration count is zero")
        for index, slot in enumerate(self.slots):
            end = self._end_sectors(slot)
            self._check_slot(index, slot, end)
            for other_index in range(index + 1, SLOTS):
                other = self.slots[other_index]
                if slot.offset_sectors < self._end_sectors(other) and other.offset_sectors < end:
                    raise QmpError(
                        f"Keyslots {index} and {other_index} are overlapping in the header"
                    )
        for iterations in (
            self.mk_digest_iterations,
            *(slot.iterations for slot in self.slots if slot.is_active),
        ):
            if iterations > MAX_ITERATIONS:
                raise QmpError(f"LUKS iteration count {iterations} is too large")

    def _end_sectors(self, slot: Slot) -> int:
        return slot.offset_sectors + -(-self.key_bytes * slot.stripes // SECTOR)

    def _check_slot(self, index: int, slot: Slot, end_sectors: int) -> None:
        if slot.state not in (ENABLED, DISABLED):
            raise QmpError(f"Keyslot {index} state (active/disable) is corrupted")
        if slot.stripes != STRIPES:
            shown = slot.stripes - (1 << 32) if slot.stripes >> 31 else slot.stripes
            raise QmpError(f"Keyslot {index} is corrupted (stripes {shown} != {STRIPES})")
        if slot.offset_sectors < ALIGNMENT // SECTOR:
            raise QmpError(f"Keyslot {index} is overlapping with the LUKS header")
        if slot.is_active and not slot.iterations:
            raise QmpError(f"Keyslot {index} iteration count is zero")
        if end_sectors > self.payload_offset_sectors:
            raise QmpError(f"Keyslot {index} is overlapping with the encrypted payload")

    def spec(self) -> CipherSpec:
        """Return how the volume is encrypted.

        Raises:
            QmpError: In a way that is not known here.
        """
        mode, dash, vectors = self.cipher_mode.partition("-")
        if not dash:
            raise QmpError(f"Unexpected cipher mode string format '{self.cipher_mode}'")
        ivgen, colon, ivgen_hash = vectors.partition(":")
        if colon:
            check_hash(ivgen_hash)
        if mode not in _MODES:
            raise QmpError(f"Cipher mode '{mode}' not supported")
        key_length = self.key_bytes // 2 if mode == "xts" else self.key_bytes
        cipher = _find_cipher(self.cipher_name, key_length)
        check_hash(self.hash_spec)
        if ivgen not in _IVGENS:
            raise QmpError(f"IV generator '{ivgen}' not supported")
        spec = CipherSpec(cipher, mode, ivgen, ivgen_hash if colon else None)
        check_spec(spec)
        return spec


def _text(field: bytes, what: str) -> str:
    if b"\0" not in field:
        raise QmpError(f"LUKS header {what} is not NUL terminated")
    return field.split(b"\0")[0].decode(errors="replace")


def _find_cipher(family: str, key_length: int) -> str:
    for name, algorithm in ALGORITHMS.items():
        if algorithm.family == family and algorithm.key_length == key_length:
            return name
    raise QmpError(f"Algorithm '{family}' with key size {key_length} bytes not supported")


def check_hash(name: str) -> None:
    """Refuse a hash that is not known, or not available here.

    Raises:
        QmpError: It is not.
    """
    if name not in kdf.DIGEST_LENGTHS or not kdf.is_available(name):
        raise QmpError(f"Hash algorithm '{name}' not supported")


def check_spec(spec: CipherSpec) -> None:
    """Refuse parts that do not go together.

    Raises:
        QmpError: They do not.
    """
    algorithm = ALGORITHMS[spec.cipher]
    if spec.ivgen == "essiv":
        if spec.ivgen_hash is None:
            raise QmpError("Missing IV generator hash specification")
        family = _ESSIV_FAMILIES.get(algorithm.family)
        if family is None:
            raise QmpError(f"Cipher {spec.cipher} not supported with essiv")
        length = kdf.DIGEST_LENGTHS[spec.ivgen_hash]
        if essiv_algorithm(spec.cipher, length) is None:
            raise QmpError(f"No {family} cipher with key size {length} available")
    if spec.mode == "xts" and algorithm.block_length != 16:
        # IEEE Std 1619-2007 is for ciphers with blocks of 128 bits.
        raise QmpError("Unsupported cipher mode xts")


# Keys


def unlock(header: Header, index: int, material: bytes, password: bytes) -> bytes | None:
    """Return the master key from a slot, or None if the password is not the slot's.

    Takes as long as the header says: call it in a worker thread.

    Args:
        header: A checked header.
        index: The slot.
        material: What is stored as the slot's key material.
        password: The password.
    """
    slot = header.slots[index]
    key = kdf.pbkdf2(header.hash_spec, password, slot.salt, slot.iterations, header.key_bytes)
    volume = Volume(header.spec(), key)
    plain = bytearray(_padded(len(material)))
    plain[: len(material)] = material
    volume.decrypt(0, plain, plain)
    candidate = afsplit.merge(header.hash_spec, bytes(plain[: len(material)]), STRIPES)
    return candidate if compare_digest(_digest(header, candidate), header.mk_digest) else None


def _padded(length: int) -> int:
    return length + -length % SECTOR


def _digest(header: Header, key: bytes) -> bytes:
    return kdf.pbkdf2(
        header.hash_spec,
        key,
        header.mk_digest_salt,
        header.mk_digest_iterations,
        DIGEST_LENGTH,
    )


def store(
    header: Header,
    index: int,
    key: bytes,
    password: bytes,
    seconds: float,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
) -> tuple[Slot, bytes]:
    """Make a slot that opens with a password; call it in a worker thread.

    Args:
        header: The header; it is not changed.
        index: The slot.
        key: The master key.
        password: The password.
        seconds: How long opening shall take.
        random: Makes random bytes.
        clock: Returns the thread's processor time in seconds.

    Returns:
        The slot as it is to be, and its key material.
    """
    length = header.key_bytes
    iterations = count(header.hash_spec, length, seconds, clock)
    salt = random(SALT_LENGTH)
    noise = random(length * (STRIPES - 1))
    plain = afsplit.split(header.hash_spec, key, STRIPES, noise)
    slot_key = kdf.pbkdf2(header.hash_spec, password, salt, iterations, length)
    material = bytearray(_padded(len(plain)))
    material[: len(plain)] = plain
    Volume(header.spec(), slot_key).encrypt(0, material, material)
    old = header.slots[index]
    slot = Slot(ENABLED, iterations, salt, old.offset_sectors, STRIPES)
    return slot, bytes(material)


def count(hash_spec: str, length: int, seconds: float, clock: Callable[[], float]) -> int:
    """Return how many iterations take a given time, within bounds."""
    iterations = kdf.count_iterations(hash_spec, length, seconds, clock)
    return min(max(iterations, MIN_ITERATIONS), MAX_ITERATIONS)


def make_header(
    spec: CipherSpec,
    hash_spec: str,
    key: bytes,
    uuid: str,
    seconds: float,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
) -> Header:
    """Return the header of a new volume, all slots disabled; call it in a worker thread.

    Args:
        spec: How to encrypt.
        hash_spec: The hash of key derivation and splitting.
        key: The master key.
        uuid: Of the volume.
        seconds: How long checking the master key shall take.
        random: Makes random bytes.
        clock: Returns the thread's processor time in seconds.
    """
    header = Header()
    header.cipher_name = ALGORITHMS[spec.cipher].family
    header.cipher_mode = f"{spec.mode}-{spec.ivgen}"
    if spec.ivgen_hash is not None:
        header.cipher_mode += f":{spec.ivgen_hash}"
    header.hash_spec = hash_spec
    header.key_bytes = len(key)
    header.uuid = uuid
    header.mk_digest_salt = random(SALT_LENGTH)
    header.mk_digest_iterations = count(hash_spec, DIGEST_LENGTH, seconds, clock)
    header.mk_digest = _digest(header, key)
    step = header.material_length + -header.material_length % ALIGNMENT
    for index, slot in enumerate(header.slots):
        slot.offset_sectors = (ALIGNMENT + index * step) // SECTOR
    header.payload_offset_sectors = (ALIGNMENT + SLOTS * step) // SECTOR
    return header


def key_length(spec: CipherSpec) -> int:
    """Return the length of a master key in bytes."""
    length = ALGORITHMS[spec.cipher].key_length
    return 2 * length if spec.mode == "xts" else length


def payload_offset(spec: CipherSpec) -> int:
    """Return how many bytes a new volume needs before its payload."""
    length = key_length(spec) * STRIPES
    return ALIGNMENT + SLOTS * (length + -length % ALIGNMENT)

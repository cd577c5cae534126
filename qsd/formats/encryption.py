# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What encrypted formats share: secrets, LUKS headers wherever a format keeps them, threads.

LUKS is a format of its own, and also a way to encrypt qcow2 images.  Both keep the same header; a
:class:`Place` says where.  Whatever takes long (deriving keys, encrypting long requests) is done in
worker threads; short requests are done at once, since a thread costs more.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, NoReturn

from qsd.crypto import luks
from qsd.crypto.cipher import ALGORITHMS
from qsd.crypto.volume import CipherSpec, Volume
from qsd.errors import QmpError, describe
from qsd.formats.sectors import Sectors
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.aio.workers import WorkerPool
    from qsd.block.graph import Graph
    from qsd.block.node import Node

#: Milliseconds (QMP reference, "QCryptoBlockCreateOptionsLUKS").
DEFAULT_ITER_TIME_MS: Final = 2000
#: What the master key's check may take of the time for opening.
_DIGEST_SHARE: Final = 8


def find_password(graph: Graph, key_secret: str | None, parameter: str = "key-secret") -> bytes:
    """Return the password that a secret holds.

    Args:
        graph: Knows the secrets.
        key_secret: The secret's identifier, or None if none was given.
        parameter: What the option is called that was to give it.

    Raises:
        QmpError: No secret was named, there is none of that name, or it holds no text.
    """
    from qsd.objects.secret import SecretCommon

    if key_secret is None:
        raise QmpError(f"Parameter '{parameter}' is required for cipher")
    value: bytes = graph.objects.resolve(key_secret, SecretCommon).value()
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # which is no text for the C daemon, though it is UTF-8
        raise QmpError(f"Data from secret {key_secret} is not valid UTF-8")
    return value


class Place(NamedTuple):
    """Where a LUKS header and its key material are.

    Attributes:
        node: The node.
        offset: Where in it, bytes.
        length: Bytes that belong to it, None for all that follow.
        write_failure: What is said when it cannot be written.
    """

    node: Node
    offset: int
    length: int | None
    write_failure: str = "Could not write encryption header"

    async def read(self, offset: int, length: int) -> bytes:
        """Read; what lies behind the end of the node is zero."""
        if self.length is not None and offset + length > self.length:
            raise QmpError("LUKS header is longer than the space for it")
        data = bytearray(length)
        try:
            await self.node.read_or_zero(self.offset + offset, memoryview(data))
        except OSError as exc:
            raise QmpError(f"Could not read encryption header: {describe(exc)}") from exc
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        """Write."""
        if self.length is not None and offset + len(data) > self.length:
            raise QmpError("LUKS header is longer than the space for it")
        try:
            await self.node.write(self.offset + offset, memoryview(data))
        except OSError as exc:
            raise QmpError(f"{self.write_failure}: {describe(exc)}") from exc


class LuksSpec(NamedTuple):
    """What a new volume is to be like.

    Attributes:
        cipher: How to encrypt.
        hash_spec: The hash of key derivation and splitting.
        iter_time_ms: How long opening shall take, milliseconds.
    """

    cipher: CipherSpec
    hash_spec: str
    iter_time_ms: int

    @property
    def header_length(self) -> int:
        """Bytes of the header with all key material."""
        return luks.payload_offset(self.cipher)


def check_create_options(options: Any) -> LuksSpec:
    """Check and complete the members of QCryptoBlockCreateOptionsLUKS.

    Raises:
        QmpError: They make no volume.
    """
    cipher = options.cipher_alg or "aes-256"
    mode = options.cipher_mode or "xts"
    ivgen = options.ivgen_alg or "plain64"
    hash_spec = options.hash_alg or "sha256"
    ivgen_hash = options.ivgen_hash_alg
    if ivgen == "essiv" and ivgen_hash is None:
        ivgen_hash = "sha256"
    if cipher not in ALGORITHMS:
        raise QmpError(f"Algorithm '{cipher}' not supported")
    spec = CipherSpec(cipher, mode, ivgen, ivgen_hash)
    luks.check_hash(hash_spec)
    luks.check_spec(spec)
    iter_time = options.iter_time if options.iter_time is not None else DEFAULT_ITER_TIME_MS
    return LuksSpec(spec, hash_spec, iter_time)


def _seconds(iter_time_ms: int) -> float:
    """Return a time that somebody asked for in seconds.

    Raises:
        QmpError: It is negative, which the C daemon takes for a very large number.
    """
    if iter_time_ms < 0:
        raise QmpError(
            f"PBKDF iterations {luks.MAX_ITERATIONS} too large to scale: "
            "Numerical result out of range"
        )
    # A day is more than MAX_ITERATIONS take; the bound keeps the arithmetic sane.
    return min(iter_time_ms / 1000, 86400.0)


class LuksHeader:
    """A LUKS header on disk, and what is done to it.

    Attributes:
        header: What it says.
    """

    __slots__ = ("_place", "_pool", "header")

    def __init__(self, header: luks.Header, place: Place, pool: WorkerPool) -> None:
        self.header = header
        self._place = place
        self._pool = pool

    @classmethod
    async def read(cls, place: Place, pool: WorkerPool) -> LuksHeader:
        """Read and check a header.

        Raises:
            QmpError: It cannot be used.
        """
        header = luks.Header.parse(await place.read(0, luks.HEADER_LENGTH))
        header.spec()
        return cls(header, place, pool)

    @classmethod
    async def create(
        cls, place: Place, pool: WorkerPool, spec: LuksSpec, password: bytes
    ) -> tuple[LuksHeader, bytes]:
        """Write a new header, with the password in slot 0; return it and the master key.

        The header is written last: before, this is no volume at all.
        """
        key = os.urandom(luks.key_length(spec.cipher))
        seconds = _seconds(spec.iter_time_ms)
        header = await pool.run(
            luks.make_header,
            spec.cipher,
            spec.hash_spec,
            key,
            str(uuid.uuid4()),
            seconds / _DIGEST_SHARE,
            os.urandom,
            time.thread_time,
        )
        self = cls(header, place, pool)
        await self.store_key(0, key, password, spec.iter_time_ms)
        return self, key

    async def find_slot(self, password: bytes) -> tuple[int, bytes] | None:
        """Return the first slot that a password opens, and the master key; or None."""
        for index, slot in enumerate(self.header.slots):
            if slot.is_active:
                key = await self.try_slot(index, password)
                if key is not None:
                    return index, key
        return None

    async def try_slot(self, index: int, password: bytes) -> bytes | None:
        """Return the master key if a password opens an active slot, else None."""
        slot = self.header.slots[index]
        material = await self._place.read(slot.offset, self.header.material_length)
        return await self._pool.run(luks.unlock, self.header, index, material, password)

    async def unlock(self, password: bytes) -> bytes:
        """Return the master key.

        Raises:
            QmpError: The password opens no slot.
        """
        found = await self.find_slot(password)
        if found is None:
            raise QmpError("Invalid password, cannot unlock any keyslot")
        return found[1]

    def make_sectors(self, key: bytes) -> Sectors:
        """Return what encrypts the payload."""
        return Sectors(Volume(self.header.spec(), key), self._pool)

    async def store_key(self, index: int, key: bytes, password: bytes, iter_time_ms: int) -> None:
        """Let a password open a slot; key material first, so that a crash leaves no broken slot."""
        slot, material = await self._pool.run(
            luks.store,
            self.header,
            index,
            key,
            password,
            _seconds(iter_time_ms),
            os.urandom,
            time.thread_time,
        )
        await self._place.write(slot.offset, material)
        await self._place.node.flush()
        await self._replace_slot(index, slot)

    async def erase_slot(self, index: int) -> None:
        """Disable a slot for good: the header first, then the material is overwritten."""
        old = self.header.slots[index]
        slot = luks.Slot(offset_sectors=old.offset_sectors)
        await self._replace_slot(index, slot)
        await self._place.write(slot.offset, os.urandom(self.header.material_length))
        await self._place.node.flush()

    async def _replace_slot(self, index: int, slot: luks.Slot) -> None:
        old = self.header.slots[index]
        self.header.slots[index] = slot
        try:
            await self._place.write(0, self.header.pack())
            await self._place.node.flush()
        except BaseException:
            self.header.slots[index] = old
            raise

    # Changing keys (QMP reference, "QCryptoBlockAmendOptionsLUKS")

    async def amend(
        self, graph: Graph, options: Any, key_secret: str | None, *, force: bool
    ) -> None:
        """Add a key or take keys away, as QCryptoBlockAmendOptionsLUKS says.

        Args:
            graph: Knows the secrets.
            options: What to do.
            key_secret: The secret that opened the volume.
            force: Whether to do what may leave no key.

        Raises:
            QmpError: It cannot be done, or would leave no key.
        """
        if options.state == "active":
            await self._add_key(graph, options, key_secret, force=force)
        else:
            await self._erase_keys(graph, options, force=force)

    async def _add_key(
        self, graph: Graph, options: Any, key_secret: str | None, *, force: bool
    ) -> None:
        if options.new_secret is None:
            raise QmpError("'new-secret' is required to activate a keyslot")
        if options.old_secret is not None:
            raise QmpError("'old-secret' must not be given when activating keyslots")
        slots = self.header.slots
        if options.keyslot is not None:
            index = options.keyslot
            if not 0 <= index < luks.SLOTS:
                # Shown as an unsigned number, as the C daemon does here.
                _refuse_slot(index % (1 << 32))
            if slots[index].is_active and not force:
                raise QmpError(
                    f"Refusing to overwrite active keyslot {index} - please erase it first"
                )
        else:
            free = [number for number, slot in enumerate(slots) if not slot.is_active]
            if not free:
                raise QmpError("Can't add a keyslot - all keyslots are in use")
            index = free[0]
        old = find_password(graph, options.secret if options.secret is not None else key_secret)
        key = await self.unlock(old)
        new = find_password(graph, options.new_secret)
        iter_time = options.iter_time
        await self.store_key(
            index, key, new, iter_time if iter_time is not None else DEFAULT_ITER_TIME_MS
        )

    async def _erase_keys(self, graph: Graph, options: Any, *, force: bool) -> None:
        if options.new_secret is not None:
            raise QmpError("'new-secret' must not be given when erasing keyslots")
        if options.iter_time is not None:
            raise QmpError("'iter-time' must not be given when erasing keyslots")
        if options.secret is not None:
            raise QmpError("'secret' must not be given when erasing keyslots")
        password = None
        if options.old_secret is not None:
            password = find_password(graph, options.old_secret)
        if options.keyslot is not None:
            await self._erase_one(options.keyslot, password, force=force)
        elif password is not None:
            await self._erase_matching(password, force=force)
        else:
            raise QmpError(
                "To erase keyslot(s), either explicit keyslot index or the password currently "
                "contained in them must be given"
            )

    async def _erase_one(self, index: int, password: bytes | None, *, force: bool) -> None:
        if not 0 <= index < luks.SLOTS:
            _refuse_slot(index)
        is_active = self.header.slots[index].is_active
        if password is not None and not (
            is_active and await self.try_slot(index, password) is not None
        ):
            raise QmpError(
                f"Given keyslot {index} doesn't contain the given old password for erase operation"
            )
        if not force and not is_active:
            raise QmpError(f"Given keyslot {index} is already erased (inactive) ")
        if not force and self._active_count() == 1:
            raise QmpError(
                f"Attempt to erase the only active keyslot {index} which will erase all the data "
                "in the image irreversibly - refusing operation"
            )
        await self.erase_slot(index)

    async def _erase_matching(self, password: bytes, *, force: bool) -> None:
        matching = [
            index
            for index, slot in enumerate(self.header.slots)
            if slot.is_active and await self.try_slot(index, password) is not None
        ]
        if not matching:
            raise QmpError("No keyslots match given (old) password for erase operation")
        if not force and len(matching) == self._active_count():
            raise QmpError(
                "All the active keyslots match the (old) password that was given and erasing them "
                "will erase all the data in the image irreversibly - refusing operation"
            )
        for index in matching:
            await self.erase_slot(index)

    def _active_count(self) -> int:
        return sum(slot.is_active for slot in self.header.slots)

    def info(self) -> dict[str, Any]:
        """Describe the header (QMP reference, "QCryptoBlockInfoLUKS")."""
        header = self.header
        spec = header.spec()
        info: dict[str, Any] = {
            "cipher-alg": spec.cipher,
            "cipher-mode": spec.mode,
            "ivgen-alg": spec.ivgen,
            "hash-alg": header.hash_spec,
            "payload-offset": header.payload_offset,
            "master-key-iters": header.mk_digest_iterations,
            "uuid": header.uuid,
            "slots": [_slot_info(slot) for slot in header.slots],
        }
        if spec.ivgen == "essiv":
            info["ivgen-hash-alg"] = spec.ivgen_hash
        return info


def _refuse_slot(index: int) -> NoReturn:
    raise QmpError(f"Invalid keyslot {index} specified, must be between 0 and {luks.SLOTS - 1}")


def _slot_info(slot: luks.Slot) -> dict[str, Any]:
    info: dict[str, Any] = {"active": slot.is_active, "key-offset": slot.offset}
    if slot.is_active:
        info["iters"] = slot.iterations
        info["stripes"] = slot.stripes
    return info

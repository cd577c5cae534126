# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted qcow2 images ("crypt_method" of the header).

=====  =================================================================================  ========
1      AES-128-CBC with the password as the key ("AES encryption", of old)                 by guest
2      LUKS: a LUKS header in clusters of its own, which a header extension points to     by host
       ("Full disk encryption header pointer")
=====  =================================================================================  ========

The last column says whether the sector numbers that go into the initialization vectors are those of
the guest, or those of the place in the file.

Only guest data is encrypted: neither metadata nor compressed clusters are.  So no plain data is
ever compressed here, and a fresh cluster that reads as zeroes in the file does not read as zeroes
for the guest.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from qsd.block.mapping import DATA
from qsd.crypto.rows import SECTOR
from qsd.crypto.volume import CipherSpec, Volume
from qsd.errors import QmpError, os_error
from qsd.formats.encryption import (
    LuksHeader,
    LuksSpec,
    Place,
    check_create_options,
    find_password,
)
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.layout import Extension
from qsd.formats.sectors import GATHER_LENGTH, Sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.aio.rangelock import RangeHold, RangeLock
    from qsd.block.graph import Edge, Graph
    from qsd.block.mapped import MappedDriver
    from qsd.block.node import Node
    from qsd.formats.qcow2.image import Image
    from qsd.formats.qcow2.layout import Header
    from qsd.formats.qcow2.lookups import EncryptedLookups

NONE: Final = 0
AES: Final = 1
LUKS: Final = 2
_NAMES: Final = {AES: "aes", LUKS: "luks"}
_PARAMETER: Final = "encrypt.key-secret"
#: Bytes; "AES encryption": the key is the password, cut or filled up with zeroes.
_AES_KEY_LENGTH: Final = 16
_AES: Final = CipherSpec("aes-128", "cbc", "plain64", None)
#: The C daemon's word for writing, too.
_WRITE_FAILURE: Final = "Could not read encryption header"
#: Bytes of the extension: offset and length.
_POINTER_LENGTH: Final = 16
#: Bytes; the longest LUKS header that is believed; those of known ciphers have 2 MiB.
_MAX_LUKS_LENGTH: Final = 64 << 20


def check_options(given: Any, header: Header) -> None:
    """Compare the encryption that options expect with that of the image.

    Raises:
        QmpError: They differ.
    """
    method = header.crypt_method
    if given is None:
        return
    if method == NONE:
        raise QmpError(
            f"No encryption in image header, but options specified format '{given.format}'"
        )
    if given.format != _NAMES[method]:
        raise QmpError(
            f"Header reported '{_NAMES[method]}' encryption format but options specify "
            f"'{given.format}'"
        )


def luks_place(file: Node, header: Header) -> Place:
    """Return where the LUKS header is.

    Raises:
        QmpError: It is nowhere.
    """
    body = header.extension(layout.EXT_CRYPTO)
    if body is None:
        raise QmpError("Missing CRYPTO header for crypt method 2")
    if len(body) != _POINTER_LENGTH:
        raise QmpError(
            f"CRYPTO header extension size {len(body)}, but expected size {_POINTER_LENGTH}"
        )
    offset = layout.U64.unpack_from(body, 0)[0]
    length = layout.U64.unpack_from(body, 8)[0]
    cluster_size = 1 << header.cluster_bits
    if offset % cluster_size:
        raise QmpError(
            f"Encryption header offset '{offset}' is not a multiple of cluster size "
            f"'{cluster_size}'"
        )
    if offset >= header_io.MAX_HOST_OFFSET or length > _MAX_LUKS_LENGTH:
        raise QmpError("Encryption header is misplaced or too long")
    return Place(file, offset, length, _WRITE_FAILURE)


def _aes_volume(password: bytes) -> Volume:
    return Volume(_AES, password[:_AES_KEY_LENGTH].ljust(_AES_KEY_LENGTH, b"\0"))


class _Held:
    """Ends a request that needs its mapping until then: it must not change meanwhile.

    Attributes:
        hold: The claim on its range.
    """

    __slots__ = ("_done", "_ranges", "hold")

    def __init__(self, ranges: RangeLock, hold: RangeHold, done: Callable[[bool], None]) -> None:
        self._ranges = ranges
        self.hold = hold
        self._done = done

    def __call__(self, full: bool) -> None:
        self._ranges.release(self.hold)
        self._done(full)


def _hold(
    driver: MappedDriver, offset: int, length: int, done: Callable[[bool], None]
) -> _Held | None:
    """Claim the range of a request; None if somebody is changing it."""
    hold = driver.ranges.claim_nowait(offset, offset + length, False)
    return _Held(driver.ranges, hold, done) if hold is not None else None


class Encryption:
    """The encryption of one open image."""

    __slots__ = ("_by_host", "_key_secret", "_lookups", "_luks", "_sectors")

    def __init__(self, sectors: Sectors, luks: LuksHeader | None, key_secret: str | None) -> None:
        self._lookups: EncryptedLookups | None = None
        self._sectors = sectors
        self._luks = luks
        self._by_host = luks is not None
        self._key_secret = key_secret

    @classmethod
    async def open(cls, graph: Graph, file: Node, header: Header, given: Any) -> Encryption | None:
        """Unlock an image; None if it is not encrypted.

        Args:
            graph: Knows the secrets and has the threads.
            file: The node with the metadata.
            header: The image's header.
            given: The "encrypt" member of the options, or None.

        Raises:
            QmpError: It cannot be unlocked.
        """
        if header.crypt_method == NONE:
            return None
        # Before any secret is asked for, as the C daemon does.
        place = luks_place(file, header) if header.crypt_method == LUKS else None
        key_secret = given.branch.key_secret if given is not None else None
        password = find_password(graph, key_secret, _PARAMETER)
        if place is None:
            return cls(Sectors(_aes_volume(password), graph.pool), None, key_secret)
        luks = await LuksHeader.read(place, graph.pool)
        return cls(luks.make_sectors(await luks.unlock(password)), luks, key_secret)

    def forget(self) -> None:
        """Drop the key."""
        self._sectors.forget()

    async def read(self, offset: int, edge: Edge, host: int, view: memoryview) -> None:
        """Read and decrypt whole sectors of one extent."""
        await edge.node.read_or_zero(host, view)
        await self._sectors.decrypt(host if self._by_host else offset, view)

    async def write(self, offset: int, edge: Edge, host: int, view: memoryview, flags: int) -> None:
        """Encrypt and write whole sectors of one extent."""

        async def store(start: int, encrypted: memoryview) -> None:
            await edge.node.write(host + start, encrypted, flags)

        await self._sectors.write(host if self._by_host else offset, view, store)

    # Fast paths: one extent of encrypted data whose mapping is in memory.  4 KiB at queue depth 32
    # take 30 us of processor time instead of 130 (see :mod:`qsd.formats.sectors`).

    def bind(self, lookups: EncryptedLookups) -> None:
        """Let the fast paths find data by the tables of the open image."""
        self._lookups = lookups

    def _find(
        self, driver: MappedDriver, offset: int, length: int, *, writable: bool
    ) -> tuple[Node, int] | None:
        """Return the node and the offset where a range is, if it lies in one piece.

        Args:
            driver: The format's.
            offset: Of the guest.
            length: Bytes.
            writable: Whether it shall be overwritten.
        """
        if not 0 <= offset <= driver.length() - length:
            return None
        lookups = self._lookups
        if lookups is not None:
            find = lookups.locate_writable_nowait if writable else lookups.locate_data_nowait
            host = find(offset, length)
            if host >= 0:
                return driver.data_edge().node, host
        place = driver.map_nowait(offset, length)
        if place is None or place.kind != DATA or place.length != length or place.edge is None:
            return None
        if writable and not place.writable:
            return None
        return place.edge.node, place.host_offset

    def read_nowait(self, driver: MappedDriver, offset: int, view: memoryview) -> bool:
        """Fast: read and decrypt at once; see the driver's function."""
        if self._sectors.defers(offset, len(view)):
            return False
        place = self._find(driver, offset, len(view), writable=False)
        if place is None:
            return False
        node, host = place
        return self._sectors.read_nowait(node, host if self._by_host else offset, host, view)

    def write_nowait(self, driver: MappedDriver, offset: int, view: memoryview) -> bool:
        """Fast: encrypt and overwrite in place at once; see the driver's function."""
        rmw = driver.node.rmw
        if rmw is not None and rmw.exclusive_count:
            return False  # somebody reads sectors in order to write them back
        if self._sectors.defers(offset, len(view)):
            return False
        place = self._find(driver, offset, len(view), writable=True)
        if place is None:
            return False
        node, host = place
        return self._sectors.write_nowait(node, host if self._by_host else offset, host, view)

    def read_later(
        self, driver: MappedDriver, offset: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        """Fast: decrypt together with other requests; see the driver's function."""
        length = len(view)
        place = self._find(driver, offset, length, writable=False)
        if place is None:
            return False
        node, host = place
        start = host if self._by_host else offset
        if length <= GATHER_LENGTH and self._sectors.read_in_memory(node, start, host, view, done):
            return True
        held = _hold(driver, offset, length, done)
        if held is None:
            return False
        if self._sectors.read_later(node, start, host, view, held):
            return True
        driver.ranges.release(held.hold)
        return False

    def write_later(
        self, driver: MappedDriver, offset: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        """Fast: encrypt together with other requests; see the driver's function."""
        length = len(view)
        place = self._find(driver, offset, length, writable=True)
        if place is None:
            return False
        held = _hold(driver, offset, length, done)
        if held is None:
            return False
        node, host = place
        start = host if self._by_host else offset
        if self._sectors.write_later(node, start, host, view, held):
            return True
        driver.ranges.release(held.hold)
        return False

    # Several requests at once: see :mod:`qsd.exports.nbd_runs`

    @property
    def is_slow(self) -> bool:
        """Whether the cipher is what short requests cost, not the calls."""
        return self._sectors.volume.is_slow

    def read_run(self, driver: MappedDriver, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: read and decrypt several short requests."""
        pieces = self._pieces(driver, requests, writable=False)
        if not pieces or not self._sectors.read_run(driver.data_edge().node, pieces):
            return 0
        return len(pieces)

    def write_run(self, driver: MappedDriver, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: encrypt several short requests, and overwrite in place."""
        node = driver.node
        if node.rmw is not None and node.rmw.exclusive_count:
            return 0  # somebody reads sectors in order to write them back
        pieces = self._pieces(driver, requests, writable=True)
        if not pieces:
            return 0
        count = self._sectors.write_run(driver.data_edge().node, pieces)
        for offset, view in requests[:count]:
            if offset + len(view) > node.wr_highest_offset:
                node.wr_highest_offset = offset + len(view)
        return count

    def _pieces(
        self,
        driver: MappedDriver,
        requests: Sequence[tuple[int, memoryview]],
        *,
        writable: bool,
    ) -> list[tuple[int, int, memoryview]]:
        """Return where requests are, up to the first one that is not plainly there."""
        pieces: list[tuple[int, int, memoryview]] = []
        file = driver.data_edge().node
        for offset, view in requests:
            if (offset | len(view)) & (SECTOR - 1):
                break
            place = self._find(driver, offset, len(view), writable=writable)
            if place is None or place[0] is not file:
                break
            host = place[1]
            pieces.append((host if self._by_host else offset, host, view))
        return pieces

    async def amend(self, graph: Graph, given: Any, *, force: bool) -> None:
        """Change the keys, as QCryptoBlockAmendOptions says.

        Raises:
            QmpError: With the C daemon's text.
        """
        if given.format != ("luks" if self._luks is not None else "qcow"):
            if self._luks is not None:
                raise QmpError("Amend can't be used to change the qcow2 encryption format")
            raise QmpError(
                "Only LUKS encryption options can be amended for qcow2 with blockdev-amend"
            )
        if self._luks is None:
            raise QmpError(
                "Only LUKS encryption options can be amended for qcow2 with blockdev-amend"
            )
        await self._luks.amend(graph, given.branch, self._key_secret, force=force)

    def info(self) -> dict[str, Any]:
        """Describe the encryption (QMP reference, "ImageInfoSpecificQCow2Encryption")."""
        if self._luks is None:
            return {"format": "aes"}
        return {"format": "luks", **self._luks.info()}


# New images


class Plan:
    """How a new image is to be encrypted.

    Attributes:
        method: AES or LUKS.
    """

    __slots__ = ("_password", "_spec", "method")

    def __init__(self, graph: Graph, given: Any) -> None:
        """Check `given`, a QCryptoBlockCreateOptions.

        Raises:
            QmpError: It makes no encryption.
        """
        self.method = AES if given.format == "qcow" else LUKS
        self._password = find_password(graph, given.branch.key_secret, _PARAMETER)
        self._spec: LuksSpec | None = None
        if self.method == LUKS:
            self._spec = check_create_options(given.branch)

    async def apply(self, image: Image) -> None:
        """Make an empty image an encrypted one.

        Raises:
            OSError, QmpError: That failed.
        """
        header = image.header
        if self._spec is not None:
            length = self._spec.header_length
            bits = header.cluster_bits
            count = -(-length >> bits)
            first = await image.refcounts.take_exactly(count)
            offset = first << bits
            image.used(offset + (count << bits))
            pool = image.node.graph.pool
            # What lies between header and key material must read as zeroes, up to the end.
            if image.file.length() < offset + (count << bits):
                await image.file.truncate(offset + (count << bits))
            await LuksHeader.create(
                Place(image.file, offset, length, _WRITE_FAILURE), pool, self._spec, self._password
            )
            body = layout.U64.pack(offset) + layout.U64.pack(length)
            header.extensions.insert(0, Extension(layout.EXT_CRYPTO, body))
            await image.write_back(durable=True, with_refcounts=True)
        header.crypt_method = self.method
        await header_io.write_whole(image.file, header)


def refuse_compression() -> OSError:
    """Return the error for compressed writes, which would store plain data."""
    return os_error(errno.ENOTSUP)

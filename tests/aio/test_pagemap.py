# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import pagemap
from qsd.aio.loop import run
from qsd.aio.pagecache import CacheProbe
from qsd.aio.pagemap import FilePages, PageMaps

MIB = 1 << 20
CHUNK = 64 * MIB


def fetch(view: memoryview) -> bytes:
    """Let the kernel look into a view."""
    fd = os.memfd_create("copy")
    try:
        assert os.pwrite(fd, view, 0) == len(view)
        return os.pread(fd, len(view), 0)
    finally:
        os.close(fd)


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(path))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(3 * MIB) + b"end")
    fd = os.open(path, os.O_RDWR)
    probe = CacheProbe()
    cached = probe.is_cached(fd, 0, 1)
    if not (cached and probe.can_probe):
        os.close(fd)
        pytest.skip("this kernel has no cachestat(2)")
    yield path, fd
    os.close(fd)


def test_shows_what_is_in_the_file(file: tuple[Path, int]) -> None:
    path, fd = file
    content = path.read_bytes()

    async def main() -> None:
        pages = FilePages(PageMaps(CHUNK), fd)
        for offset, length in ((0, 1), (5, 4096), (MIB - 3, 7), (10, 2 * MIB), (3 * MIB, 3)):
            for _ in range(2):  # the second time it is known
                view = pages.view_nowait(offset, length)
                assert view is not None
                assert view.readonly
                assert fetch(view) == content[offset : offset + length]
        os.pwrite(fd, b"other", 100)
        view = pages.view_nowait(98, 9)
        assert view is not None
        assert fetch(view) == content[98:100] + b"other" + content[105:107]
        pages.drop()
        del view
        assert not mappings(path)

    run(main())


def test_shows_nothing_behind_the_end(file: tuple[Path, int]) -> None:
    _, fd = file

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        assert pages.view_nowait(3 * MIB, 3) is not None
        for offset, length in ((3 * MIB, 4), (3 * MIB + 3, 1), (50 * MIB, 1), (900 * MIB, 1)):
            assert pages.view_nowait(offset, length) is None
        os.pwrite(fd, b"more", 3 * MIB + 3)
        maps._end_turn()
        view = pages.view_nowait(3 * MIB, 7)
        assert view is not None
        assert fetch(view) == b"endmore"
        pages.drop()

    run(main())


def test_a_file_cut_off_behind_our_back_is_an_error_of_the_call(file: tuple[Path, int]) -> None:
    _, fd = file

    async def main() -> None:
        pages = FilePages(PageMaps(CHUNK), fd)
        view = pages.view_nowait(2 * MIB, 4096)
        assert view is not None
        os.truncate(fd, MIB)
        with pytest.raises(OSError, match="Bad address") as info:
            fetch(view)
        assert info.value.errno == errno.EFAULT
        pages.forget()
        assert pages.view_nowait(2 * MIB, 4096) is None
        assert pages.view_nowait(0, 4096) is not None
        pages.drop()

    run(main())


def test_shows_only_windows_that_are_cached(file: tuple[Path, int]) -> None:
    _, fd = file

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 3 * MIB, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(fd, MIB, 0)
        os.pread(fd, MIB, 2 * MIB)
        if maps.probe.is_cached(fd, MIB, MIB):
            pytest.skip("this file system keeps its pages")
        assert pages.view_nowait(MIB + 8192, 10) is None  # pages of the window are missing
        assert pages.view_nowait(MIB - 1, 2) is None  # part of it lies there
        assert pages.view_nowait(2 * MIB, 10) is not None
        os.pread(fd, MIB, MIB)
        assert pages.view_nowait(MIB + 8192, 10) is None  # as it was said
        maps._end_turn()
        assert pages.view_nowait(MIB + 8192, 10) is not None
        pages.drop()

    run(main())


def test_knowledge_and_memory_are_given_up_in_time(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = file
    monkeypatch.setattr(pagemap, "_TURN", 0.0005)

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        before = set(os.listdir("/proc/self/fd"))
        assert pages.view_nowait(0, 10) is not None
        assert set(os.listdir("/proc/self/fd")) == before
        assert maps.mapped() == CHUNK
        assert mappings(path) == 1
        while maps.mapped():
            await asyncio.sleep(0.001)
        assert not mappings(path)
        assert pages.view_nowait(0, 10) is not None
        pages.drop()
        assert not maps.mapped()

    run(main())


def resident(path: Path) -> int:
    """Return how much of a mapped file is resident, in KiB."""
    _, _, rest = Path("/proc/self/smaps").read_text(encoding="utf-8").partition(f"{path}\n")
    (line,) = [line for line in rest.splitlines()[:4] if line.startswith("Rss:")]
    return int(line.split()[1])


def test_who_has_little_to_do_gives_back_pages(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = file
    spent = 1.0
    monkeypatch.setattr(pagemap, "process_time", lambda: spent)

    async def main() -> None:
        nonlocal spent
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        view = pages.view_nowait(0, 1000)
        assert view is not None
        content = fetch(view)
        maps._end_turn()
        assert resident(path)  # much processor time was spent
        maps._end_turn()
        assert not resident(path)
        assert mappings(path) == 1
        assert fetch(view) == content
        maps._end_turn()
        assert resident(path)  # this was done already
        spent += 1
        maps._end_turn()
        maps._end_turn()
        assert not resident(path)
        pages.drop()

    run(main())


def test_only_so_much_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "large"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for index in range(3):
        os.pwrite(fd, bytes(MIB), index * CHUNK)

    async def main() -> None:
        maps = PageMaps(2 * CHUNK)
        pages = FilePages(maps, fd)
        if pages.view_nowait(0, 10) is None:
            pytest.skip("this kernel has no cachestat(2)")
        assert pages.view_nowait(CHUNK, 10) is not None
        assert pages.view_nowait(CHUNK - 5, 10) is None  # in two chunks
        assert pages.view_nowait(2 * CHUNK, 10) is None  # nobody gives way at once
        for _ in range(6):
            maps._end_turn()
            assert pages.view_nowait(0, 10) is not None
        assert maps.mapped() == 2 * CHUNK
        assert pages.view_nowait(2 * CHUNK, 10) is not None
        assert maps.mapped() == 2 * CHUNK
        assert sorted(pages.chunks) == [0, 2]  # the one that was not used gave way
        pages.drop()
        assert FilePages(PageMaps(0), fd).view_nowait(0, 10) is None

    run(main())
    os.close(fd)


def test_no_mapping_is_no_error(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    _, fd = file

    def fail(fd: int, offset: int) -> memoryview:
        raise OSError(errno.ENOMEM, "")

    async def main() -> None:
        pages = FilePages(PageMaps(CHUNK), fd)
        monkeypatch.setattr(pagemap, "_mapper", lambda: fail)
        assert pages.view_nowait(0, 10) is None
        monkeypatch.undo()
        pages.forget()
        assert pages.view_nowait(0, 10) is None  # it is not tried again
        pages.drop()
        assert pages.view_nowait(0, 10) is not None  # but for another file
        pages.drop()

    run(main())


def test_strange_file_systems_are_left_alone() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)

    async def main() -> None:
        assert FilePages(PageMaps(CHUNK), fd).view_nowait(0, 10) is None

    run(main())
    os.close(fd)


def test_a_view_outlives_its_file(file: tuple[Path, int]) -> None:
    path, fd = file
    content = path.read_bytes()

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        view = pages.view_nowait(5, 100)
        assert view is not None
        pages.drop()
        path.unlink()
        assert maps.mapped() == 0
        assert fetch(view) == content[5:105]

    run(main())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=9000)),
        st.tuples(st.just("view"), st.integers(0, 3 * MIB), st.integers(1, 2 * MIB)),
        st.tuples(st.just("truncate"), st.integers(0, 3 * MIB), st.just(0)),
        st.tuples(st.just("punch"), st.integers(0, 3 * MIB), st.integers(1, MIB)),
        st.tuples(st.just("evict"), st.integers(0, 3 * MIB), st.integers(1, MIB)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_views_are_like_reads(file: tuple[Path, int], steps: list[tuple[str, int, object]]) -> None:
    from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate

    path, fd = file
    os.truncate(fd, 2 * MIB)

    async def main() -> None:
        pages = FilePages(PageMaps(CHUNK), fd)
        for step, offset, what in steps:
            if isinstance(what, bytes):
                os.pwrite(fd, what, offset)
            elif step == "truncate":
                os.truncate(fd, offset)
            elif step == "punch":
                assert isinstance(what, int)
                fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, what)
            elif step == "evict":
                assert isinstance(what, int)
                os.posix_fadvise(fd, offset, what, os.POSIX_FADV_DONTNEED)
            elif step == "forget":
                pages.forget()
            else:
                assert isinstance(what, int)
                view = pages.view_nowait(offset, what)
                if view is None:
                    continue
                assert len(view) == what
                try:
                    got = fetch(view)
                except (OSError, AssertionError):
                    assert offset + what > os.fstat(fd).st_size
                else:
                    rest = os.pread(fd, what, offset)
                    assert got == rest + bytes(what - len(rest))
        view = None
        pages.drop()
        assert not mappings(path)

    run(main())


def test_who_had_to_wait_asks_again(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nobody had to wait for a page, what the kernel said is believed."""
    _, fd = file
    waits = [0]
    monkeypatch.setattr(
        "resource.getrusage", lambda who: type("Usage", (), {"ru_majflt": waits[0]})
    )

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        asked: list[int] = []

        def note(self: CacheProbe, fd: int, offset: int, length: int) -> bool:
            asked.append(offset)
            return True

        monkeypatch.setattr(CacheProbe, "is_cached", note)
        for _ in range(3):
            assert pages.view_nowait(0, 10) is not None
            maps.note_slowness()
        assert asked == [0]
        waits[0] += 1
        maps.note_slowness()
        assert pages.view_nowait(0, 10) is not None
        maps.note_slowness()
        assert pages.view_nowait(0, 10) is not None
        assert asked == [0, 0]
        pages.drop()

    run(main())


def test_a_lost_page_takes_all_maps_with_it(file: tuple[Path, int]) -> None:
    path, fd = file

    async def main() -> None:
        maps = PageMaps(CHUNK)
        pages = FilePages(maps, fd)
        assert pages.view_nowait(0, 10) is not None
        start = pagemap._address_of(pages.chunks[0].view)
        for address in (0, start - 1, start + CHUNK):
            assert not maps.lose(address)
        assert (maps.losses, maps.mapped()) == (0, CHUNK)
        assert maps.lose(start + MIB)
        assert (maps.losses, maps.mapped()) == (1, 0)
        assert mappings(path) == 1  # somebody may be within it
        assert maps.lose(start)
        assert maps.losses == 2
        maps.settle()
        assert not mappings(path)
        assert not maps.lose(start)
        assert pages.view_nowait(0, 10) is not None  # a new one
        pages.drop()

    run(main())

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Mounting by the system call and by the helper."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from qsd.errors import QmpError
from qsd.exports import fuse_mount

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
)

#: A helper that checks its arguments and passes a descriptor of its own.
HELPER = """#!{python}
import os, socket, sys
assert sys.argv[1] == "-o" and sys.argv[3:] == ["--", {point!r}], sys.argv
open({log!r}, "w").write(sys.argv[2])
end = socket.socket(fileno=int(os.environ["_FUSE_COMMFD"]))
if {gives}:
    socket.send_fds(end, [b"x"], [os.open("/dev/null", os.O_RDWR)])
print("no way", file=sys.stderr)
sys.exit({code})
"""


def test_mount_points(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with pytest.raises(QmpError, match=r"Failed to stat '.*/f': No such file"):
        fuse_mount.check_mountpoint(str(file))
    file.touch()
    assert fuse_mount.check_mountpoint(str(file)) == str(file)
    (tmp_path / "link").symlink_to("f")
    assert fuse_mount.check_mountpoint(str(tmp_path / "link")) == str(file)
    with pytest.raises(QmpError, match="is not a regular file"):
        fuse_mount.check_mountpoint(str(tmp_path))


@pytest.mark.root
@needs_root
def test_mounting_directly(tmp_path: Path) -> None:
    point = tmp_path / "f"
    point.touch()
    fd = fuse_mount.mount(str(point), allow_other=True)
    try:
        assert stat.S_ISCHR(os.fstat(fd).st_mode)
        assert not os.get_blocking(fd)
        (line,) = (
            line for line in Path("/proc/mounts").read_text().splitlines() if str(point) in line
        )
        assert line.startswith("/dev/fuse ")
        assert "allow_other" in line
        assert "default_permissions" in line
    finally:
        fuse_mount.unmount(str(point))
        os.close(fd)
    assert str(point) not in Path("/proc/mounts").read_text()


def _mounts_on(point: Path) -> int:
    return Path("/proc/mounts").read_text().count(f" {str(point).replace(' ', chr(92) + '040')} ")


@pytest.mark.root
@needs_root
def test_dead_mounts_are_taken_away(tmp_path: Path) -> None:
    point = tmp_path / "a file"
    point.touch()
    os.close(fuse_mount.mount(str(point), allow_other=False))
    assert _mounts_on(point) == 1
    with pytest.raises(OSError, match="not connected"):
        point.stat()
    fuse_mount.check_mountpoint(str(point))
    assert _mounts_on(point) == 0
    fuse_mount.check_mountpoint(str(point))


@pytest.mark.root
@needs_root
def test_dead_mounts_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = tmp_path / "f"
    point.touch()
    os.close(fuse_mount.mount(str(point), allow_other=False))
    try:
        monkeypatch.setattr(fuse_mount, "_is_one_file", lambda path: False)
        with pytest.raises(QmpError, match=r"Failed to stat .* endpoint is not connected"):
            fuse_mount.check_mountpoint(str(point))
        assert _mounts_on(point) == 1
    finally:
        fuse_mount.unmount(str(point))


@pytest.mark.root
@needs_root
def test_only_mounts_like_ours_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tmp_path / "f"
    point.touch()
    assert not fuse_mount._is_one_file(str(point))
    os.close(fuse_mount.mount(str(point), allow_other=False))
    try:
        monkeypatch.chdir(tmp_path)
        assert fuse_mount._is_one_file(str(point))
        assert fuse_mount._is_one_file("f")
        assert not fuse_mount._is_one_file("/proc")
    finally:
        fuse_mount.unmount(str(point))


@pytest.mark.root
@needs_root
def test_mounting_nowhere(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        fuse_mount.mount(str(tmp_path / "none"), allow_other=False)
    assert caught.value.errno == errno.ENOENT


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend to be a plain user with helpers in a folder of the test's own."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_helper(folder: Path, *, gives: bool = True, code: int = 0) -> None:
    helper = folder / "fusermount3"
    helper.write_text(
        HELPER.format(
            python=sys.executable,
            point=str(folder / "point"),
            log=str(folder / "log"),
            gives=gives,
            code=code,
        )
    )
    helper.chmod(0o755)


@pytest.mark.parametrize("allow_other", [False, True])
def test_the_helper_passes_a_descriptor(as_user: Path, allow_other: bool) -> None:
    write_helper(as_user)
    fd = fuse_mount.mount(str(as_user / "point"), allow_other=allow_other)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
    finally:
        os.close(fd)
    options = (as_user / "log").read_text().split(",")
    assert ("allow_other" in options) == allow_other


def test_the_helper_fails(as_user: Path) -> None:
    with pytest.raises(OSError, match="not installed"):
        fuse_mount.mount(str(as_user / "point"), allow_other=False)
    write_helper(as_user, gives=False, code=1)
    with pytest.raises(OSError, match="no way"):
        fuse_mount.mount(str(as_user / "point"), allow_other=False)
    write_helper(as_user, gives=False)
    with pytest.raises(OSError, match="passed no descriptor"):
        fuse_mount.mount(str(as_user / "point"), allow_other=False)
    fuse_mount.unmount(str(as_user / "point"))  # and this never complains

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Rules of blkdebug in files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from qsd.errors import QmpError
from qsd.filters.blkdebug_config import parse_config, read_config

RULES = """\
# comment

[inject-error]
event = "l2_load"
errno = "28"
sector = "5"
once = "on"
state = "0x2"
iotype = "write"

[set-state "name"] anything
event = "read_aio" anything
new_state = "3"
[inject-error]
event = "none"
event = "read_aio"
"""


def parse(text: str) -> object:
    return parse_config(text.splitlines(keepends=True))


def test_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(RULES)
    (first, second), (change,) = read_config(str(path))
    assert first == ("l2_load", 2, frozenset({"write"}), errno.ENOSPC, 5 * 512, True)
    assert change == ("read_aio", 0, 3)
    assert second.event == "read_aio"  # the last one counts
    assert (second.errno, second.offset, second.once) == (errno.EIO, None, False)
    assert second.iotypes == {"read", "write", "write-zeroes", "discard", "flush"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[inject-error]\nevent = "bogus"\n', "invalid parameter value: bogus"),
        ("[inject-error]\nevent = read_aio\n", "invalid parameter value: "),
        ('[inject-error]\nevent = "none"\niotype = "x"\n', "invalid parameter value: x"),
        ("[inject-error]\n", "Missing event name for rule"),
        ('[set-state]\nstate = "1"\n', "Missing event name for rule"),
        ('[bogus]\nx = "1"\n', "There is no option group 'bogus'"),
        ("[inject-error\n", "There is no option group 'inject-error\n'"),
        ('event = "none"\n', "no group defined"),
        (' [inject-error]\nevent = "none"\n', "no group defined"),
        ("   \n", "parse error"),
        ('[inject-error]\nfoo = "1"\n', "Invalid parameter 'foo'"),
        ('[inject-error]\nevent="x"\n', "Invalid parameter 'event=\"x\"'"),
        ('[inject-error]\nerrno = "abc"\n', "Parameter 'errno' expects a number"),
        ('[inject-error]\nerrno = "x"\nsector = "y"\n', "Parameter 'sector' expects a number"),
        ('[inject-error]\nfoo = "1"\n   \n', "parse error"),
        ('[inject-error]\nfoo = "1"\n[bogus]\n', "Invalid parameter 'foo'"),
        ('[inject-error]\nonce = "maybe"\n', "Parameter 'once' expects 'on' or 'off'"),
    ],
)
def test_refusals(text: str, error: str) -> None:
    with pytest.raises(QmpError) as info:
        parse(text)
    assert info.value.desc == error


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(QmpError) as info:
        read_config(str(tmp_path / "missing"))
    assert info.value.desc == "Could not read blkdebug config file: No such file or directory"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(QmpError) as info:
        read_config(str(tmp_path))
    assert info.value.desc == "Cannot read config file: Is a directory"

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import filename as names
from qsd.block.filename import nested, protocol_of
from qsd.errors import QmpError


class NoThreads:
    """Makes calls at once."""

    async def run(self, func: Any, *args: Any) -> Any:
        return func(*args)


class NoGraph:
    """Knows file, raw and qcow2."""

    pool = NoThreads()

    def find_driver(self, name: str) -> Any:
        family = {"file": "protocol", "raw": "format", "qcow2": "format"}.get(name)
        return type("Driver", (), {"family": family}) if family else None


GRAPH: Any = NoGraph()


def options_for_filename(filename: str, fmt: str | None = None) -> Any:
    return run(names.options_for_filename(filename, GRAPH, fmt))


def format_over(options: Any, fmt: str) -> Any:
    return run(names.format_over(options, fmt, GRAPH))


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("a.img", None),
        ("/x/a:b.img", None),
        ("./a:b", None),
        ("file:a", "file"),
        ("nbd+unix:///x?socket=s", "nbd+unix"),
        ("json:{}", "json"),
        (":x", ""),
    ],
)
def test_protocol_prefix(name: str, protocol: str | None) -> None:
    assert protocol_of(name) == protocol


def test_plain_names_open_files() -> None:
    options = options_for_filename("no/such/a.img")
    assert options.driver == "file"
    assert options.branch is not None
    assert options.branch.filename == "no/such/a.img"


def test_json_names_take_dotted_and_nested_keys() -> None:
    flat = options_for_filename('json:{"driver":"raw","file.driver":"file","file.filename":"a"}')
    deep = options_for_filename('json:{"driver":"raw","file":{"driver":"file","filename":"a"}}')
    assert flat == deep


def test_json_names_need_not_tell_the_drivers_of_files() -> None:
    """The path does, as it is, and where there is no format the content."""
    whole = options_for_filename('json:{"driver":"raw","file.driver":"file","file.filename":"a:b"}')
    assert options_for_filename('json:{"driver":"raw","file":{"filename":"a:b"}}') == whole
    assert options_for_filename('json:{"file.filename":"a:b"}') == whole
    device = options_for_filename('json:{"driver":"raw","file.filename":"/dev/null"}')
    assert device.branch.file.driver == "host_device"
    both = options_for_filename(
        'json:{"driver":"qcow2","file.filename":"a","backing":{"file.filename":"a:b"}}'
    )
    assert both.branch.backing == whole


def test_a_json_name_of_what_cannot_be_opened_is_raw() -> None:
    """The driver that opens it says what is wrong."""
    options = options_for_filename('json:{"file":{"driver":"file","filename":"a\\u0000b"}}')
    assert options.driver == "raw"
    with pytest.raises(QmpError, match=r"^The 'file' block driver requires a file name$"):
        options_for_filename('json:{"file":{"driver":"file","filename":5}}')


def test_a_path_with_a_nul_byte_is_that_of_a_file() -> None:
    assert options_for_filename("a\0b").driver == "file"


def test_the_recorded_format_counts_more_than_that_of_a_json_name() -> None:
    name = 'json:{"driver":"raw","file.filename":"a"}'
    assert options_for_filename(name, "qcow2").driver == "qcow2"
    assert options_for_filename('json:{"driver":"null-co","filename":"a"}', "file").driver == "file"
    with pytest.raises(QmpError, match=r'^A block device must be specified for "file"$'):
        options_for_filename('json:{"driver":"file","filename":"a"}', "raw")


@pytest.mark.parametrize(
    ("name", "fmt", "filename"),
    [
        ("nbd:x", "file", "nbd:x"),
        ("null-co://", "file", "null-co://"),
        ("gopher:x", "file", "gopher:x"),
        ("file:x", "file", "x"),
        ("file:nbd:x", "file", "./nbd:x"),
        ("file:nbd:x", "raw", "./nbd:x"),
        ("file::x", None, "./:x"),
        ("file:a/b:c", None, "a/b:c"),
        ("file:x", "host_device", "file:x"),
        ("host_device:x", "host_device", "x"),
    ],
)
def test_a_format_that_is_a_protocol_takes_names_as_they_are(
    name: str, fmt: str | None, filename: str
) -> None:
    options = options_for_filename(name, fmt)
    assert options.branch.filename == filename
    assert options.driver == ("host_device" if fmt == "host_device" else "file")


@pytest.mark.parametrize(
    ("name", "fmt", "text"),
    [
        ("null-co:", None, "The only allowed filename for this driver is 'null-co://'"),
        ("null-co://x", "raw", "The only allowed filename for this driver is 'null-co://'"),
        ("a", "null-aio", "The only allowed filename for this driver is 'null-aio://'"),
        ("a", "nbd", "File name string for NBD must start with 'nbd:'"),
        ("null-co://", "nbd", "No valid URL specified"),
        (":x", None, "Unknown protocol ''"),
        ("json:{}", "file", "The 'file' block driver requires a file name"),
        ("json:{}", "nbd", "NBD server address missing"),
        ('json:{"driver":"null-co"}', "host_device", "The 'host_device' block driver requires a"),
        ('json:{"file":{"driver":"file"}}', "qcow2", "The 'file' block driver requires a file"),
    ],
)
def test_names_that_a_driver_makes_nothing_of(name: str, fmt: str | None, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        options_for_filename(name, fmt)
    assert caught.value.desc.startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ('{"driver":"raw"}', 'A block device must be specified for "file"'),
        ('{"driver":"raw","filename":"a"}', 'A block device must be specified for "file"'),
        ('{"driver":"raw","file":{}}', 'A block device must be specified for "file"'),
        ('{"driver":"raw","file":{"filename":5}}', "Must specify either driver or file"),
        (
            '{"driver":"qcow2","file.filename":"a","backing":{"filename":"a"}}',
            "Must specify either driver or file",
        ),
    ],
)
def test_json_names_of_nothing(name: str, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        options_for_filename(f"json:{name}", "qcow2")
    assert caught.value.desc == text


def test_nested_refuses_contradictions() -> None:
    with pytest.raises(QmpError):
        nested({"file": "node", "file.driver": "file"})


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(QmpError, match="Unknown protocol 'gopher'"):
        options_for_filename("gopher://x")


def test_a_format_is_put_over_protocols_only() -> None:
    plain = options_for_filename("a")
    assert format_over(plain, "qcow2").driver == "qcow2"
    assert format_over(plain, "file") is plain
    whole = options_for_filename('json:{"driver":"raw","file":{"driver":"file","filename":"a"}}')
    assert format_over(whole, "qcow2") is whole
    with pytest.raises(QmpError, match="Unknown driver 'odd'"):
        format_over(plain, "odd")

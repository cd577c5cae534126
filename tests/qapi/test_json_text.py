# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The JSON dialect, compared with what the C daemon's monitor says to the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.qapi.json_text import JsonError, JsonStream, dumps, loads

#: Input, and the outcomes in order: an error without "JSON parse error, ", or ... for some value.
# fmt: off
RECORDED: list[tuple[bytes, list[Any]]] = [
    (b'{[}]', ['expecting value']),
    (b'{[}] 1 ', ['expecting value', ...]),
    (b'{]', ['expecting value']),
    (b'[1 2]', ['expected separator in list']),
    (b'[1,]', ['expecting value']),
    (b'[,1]', ['expecting value']),
    (b'[1,2', []),
    (b'{"a":1 "b":2}', ['expected separator in dict']),
    (b'{"a"}', ['missing : in object pair']),
    (b'{1:2}', ['key is not a string in object']),
    (b'{null:2}', ['key is not a string in object']),
    (b'{,}', ['expecting value']),
    (b'{"a":1,}', ['expecting value']),
    (b'{"a":}', ['expecting value']),
    (b'{"a":,}', ['expecting value']),
    (b'{"a":1,"a":bad}', ["invalid keyword 'bad'"]),
    (b'{"a":1,"a":2', []),
    (b'{"a":{"b":1,"b":2},"c" 1}', ['duplicate key']),
    (b'[:]', ['expecting value']),
    (b'[bad,"\\x"]', ["invalid keyword 'bad'"]),
    (b'["\\x",bad]', ['invalid escape sequence in string']),
    (b'{bad:1}', ["invalid keyword 'bad'"]),
    (b'{"\\x":1}', ['invalid escape sequence in string']),
    (b'{"a":1:2}', ['expected separator in dict']),
    (b'[1:2]', ['expected separator in list']),
    (b'{"a",1}', ['missing : in object pair']),
    (b'{"a":1;}', ["stray ';'", 'expecting value']),
    (b'"\\\n"', ['stray \'"\\\n\'']),
    (b'"\\\xfe', ['stray \'"\\\ufffd\'']),
    (b'"\\\x80" ', ['invalid escape sequence in string']),
    (b'"\\u00e9" ', [...]),
    (b'"\xc0\x80" ', [...]),
    (b'{"execute":"x","id":"\xc0\x80"}', [...]),
    (b'{"execute":"x","id":"\\u0000"}', [...]),
    (b'{"execute":"x","id":"\x7f\xc2\x80\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"}', [...]),
    (b'{"execute":"x","id":"\\/<>&\'\\n\\r\\t\\b\\f\\u001f\\\\"}', [...]),
    (b'"\xe2\x82\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xe2\x82\xac\xff', ['stray \'"\u20ac\ufffd\'']),
    (b'"\xe2\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xe2\x82\xacz\xf0\x9f\xff', ['stray \'"\u20acz\ufffd\ufffd\'']),
    (b'"\xc0\x80\xff', ['stray \'"\x00\ufffd\'']),
    (b'"\xed\xa0\x80\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\x80\x81\xff', ['stray \'"\ufffd\ufffd\ufffd\'']),
    (b'"\xf0\x80\x80\x80\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xf4\x90\x80\x80\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xf8\x88\x80\x80\x80\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xfc\x84\x80\x80\x80\x80\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xef\xbf\xbf\xff', ['stray \'"\ufffd\ufffd\'']),
    (b'"\xc3(\xff', ['stray \'"\ufffd(\ufffd\'']),
    (b'{"execute":"x","id":[[],{},[1],{"a":[]}]}', [...]),
    (b'[\x00', ["stray ''"]),
    (b'{"a":\x001}', ["stray ''", 'expecting value']),
    (b'nan ', ["invalid keyword 'nan'"]),
    (b'NaN ', ["stray 'N'"]),
    (b'-Infinity ', ["stray '-I'"]),
    (b'1.5.5 ', [..., "stray '.'"]),
    (b'1-2 ', [..., ...]),
    (b'1a ', [..., "invalid keyword 'a'"]),
    (b'"a"b ', [..., "invalid keyword 'b'"]),
    (b'--1 ', ["stray '--'"]),
    (b'-a ', ["stray '-a'"]),
    (b'- 1 ', ["stray '- '"]),
    (b'{"execute":"x","id":-0e1}', ['expected separator in dict']),
    (b'{"execute":"x","id":0.0e1}', [...]),
    (b'{"execute":"x","id":1e5}', [...]),
    (b'{"execute":"x","id":12345678901234567890123456789012345678901234567890}', [...]),
    (b'//c\n1 ', ["stray '/'", ...]),
    (b'\xef\xbb\xbf{}', ["stray '\ufffd'", ...]),
    (b'{}', [...]),
    (b'{"\\u0061":1,"a":2}', ['duplicate key']),
    (b'{"a":1,"b":[}', []),
    (b'{"a":1,"b":[1}}', ['expected separator in list']),
    (b'[{]', []),
    (b'[{]}', ['expecting value']),
    (b'{"execute":"x"}}{"execute":"x"}', [..., 'expecting value', ...]),
    (b'""" ', [...]),
    (b'{\'a\':\'b"}', []),
    (b'{"execute":"\\ud83d\\ude0"}', ['\\ud83d is not a valid Unicode character']),
    (b'{"execute":"\\ud83d\\u"}', ['\\ud83d is not a valid Unicode character']),
    (b'{"execute":"\\u00g0"}', ['\\u00g0 is not a valid Unicode character']),
    (b'{"execute":"\\u"}', ['\\u" is not a valid Unicode character']),
    (b'{"execute":"\\u1"}', ['\\u1" is not a valid Unicode character']),
    (b'{"execute":"\\u12\xc3\xa9zz"}', ['\\u12\xe9 is not a valid Unicode character']),
    (b'{"execute":"\\ud800\\ud800"}', ['\\ud800 is not a valid Unicode character']),
    (b'{"execute":"\\udbff\\udfff"}', ['\\udbff\\udfff is not a valid Unicode character']),
    (b'{"execute":"\\ud83f\\udffe"}', ['\\ud83f\\udffe is not a valid Unicode character']),
    (b'{"execute":"\\u12\xc3\xa9zz"}', ['\\u12\xe9 is not a valid Unicode character']),
    (b'{"execute":"\\u\xc3\xa9\xc3\xa9\xc3\xa9zz"}', ['\\u\xe9\xe9 is not a valid Unicode character']),  # noqa: E501
    (b'"\\u12" ', ['\\u12" is not a valid Unicode character']),
    (b'"\\u1\xff', ['stray \'"\\u1\ufffd\'']),
    (b'"\\u1\xc3z123"', ['\\u1\ufffdz1 is not a valid Unicode character']),
    (b'"\\u123\xf0\x9f\x98\x80x"', ['\\u123\ufffd is not a valid Unicode character']),
    (b'"\\udbff\\udffezz"', ['\\udbff\\udffe is not a valid Unicode character']),
    (b'"\\ud83f\\udffezz"', ['\\ud83f\\udffe is not a valid Unicode character']),
    (b'"\\uD83F\\UDFFEzz"', ['\\uD83F is not a valid Unicode character']),
    (b'"\\ud83f\\u"', ['\\ud83f is not a valid Unicode character']),
    (b'"\xc3\\x"', ['invalid UTF-8 sequence in string']),
    (b'"\\x\xc3"', ['invalid escape sequence in string']),
    (b'"\\u000"', ['\\u000" is not a valid Unicode character']),
    (b"'\\u000' ", ["\\u000' is not a valid Unicode character"]),
    (b'"\\u000g" ', ['\\u000g is not a valid Unicode character']),
    (b'{"\\ud800":1}', ['\\ud800 is not a valid Unicode character']),
    (b'{"execute":"x","id":"\\uD83D\\uDE00\\ue000"}', [...]),
    (b'"\\ud83dabc\\ude00"', ['\\ud83d is not a valid Unicode character']),
    (b'"\\udbff\\udfffz"', ['\\udbff\\udfff is not a valid Unicode character']),
    (b'{"a"', []),
    (b'"\\u12 4" ', ['\\u12 4 is not a valid Unicode character']),
    (b'"\\u+123" ', ['\\u+123 is not a valid Unicode character']),
    (b'"\\u-123" ', ['\\u-123 is not a valid Unicode character']),
    (b'"\\u 123" ', ['\\u 123 is not a valid Unicode character']),
    (b'"\\u0x1f" ', ['\\u0x1f is not a valid Unicode character']),
    (b'"\\ud83d\\u 123" ', ['\\ud83d is not a valid Unicode character']),
    (b'"\\ud83d\\uzzzz" ', ['\\ud83d is not a valid Unicode character']),
    (b'abc-x def', ["invalid keyword 'abc'", "stray '-x'"]),
    (b'a-j obs}', ["invalid keyword 'a'", "stray '-j'", 'expecting value']),
    (b'[-j obs}', ["stray '-j'", 'expecting value']),
    (b'[-j,obs}', ["stray '-j'", 'expecting value', "invalid keyword 'obs'", 'expecting value']),
    (b'[-j"obs"}', ["stray '-j'", 'expecting value']),
    (b'[-jx:1]', ["stray '-j'", 'expecting value', ..., 'expecting value']),
    (b'01 2', ["stray '01'"]),
    (b'0x1f ]', [..., "invalid keyword 'x'", ..., "invalid keyword 'f'", 'expecting value']),
    (b'1.x 3', ["stray '1.x'"]),
    (b'1e 3', ["stray '1e '"]),
    (b'1.5ex', ["stray '1.5ex'"]),
    (b'-', []),
    (b'"a\nb', ['stray \'"a\n\'']),
    (b"'it\\'s' 1", [...]),
    (b'1 2 3 ', [..., ..., ...]),
    (b'TRUE ', ["stray 'T'"]),
    (b'@@@ 1 ', ["stray '@'"]),
    (b'@\x001 ', ["stray '@'", "stray ''"]),
    (b'@\x081 ', ["stray '@'", "stray '\x08'"]),
    (b'@\t1 ', ["stray '@'"]),
    (b'@\n1 ', ["stray '@'", ...]),
    (b'@\r1 ', ["stray '@'", ...]),
    (b'@}1 ', ["stray '@'", 'expecting value', ...]),
    (b'@{}', ["stray '@'", ...]),
    (b'@[]', ["stray '@'", ...]),
    (b'@\xfe1 ', ["stray '@'", "stray '\ufffd'"]),
    (b'@\x801 ', ["stray '@'"]),
    (b'@"{}" ', ["stray '@'", ...]),
    (b'%d 1 ', ["stray '%'"]),
    (b'%lld ', ["stray '%'"]),
    (b'+1 ', ["stray '+'"]),
    (b'.5 ', ["stray '.'"]),
    (b'{"a":1}\x7f{}', [..., "stray '\x7f'", ...]),
]
# fmt: on


def outcomes(found: list[Any]) -> list[Any]:
    return [
        item.desc.removeprefix("JSON parse error, ") if isinstance(item, JsonError) else ...
        for item in found
    ]


@pytest.mark.parametrize(("data", "expected"), RECORDED)
def test_recorded_outcomes(data: bytes, expected: list[Any]) -> None:
    assert outcomes(JsonStream().feed(data)) == expected
    stream = JsonStream()
    one_by_one = [item for byte in data for item in stream.feed(bytes([byte]))]
    assert outcomes(one_by_one) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"-0", 0),
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", 2**63),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 18446744073709551616.0),
        (b"-9223372036854775808", -(2**63)),
        (b"-9223372036854775809", -9223372036854775809.0),
        (b"1E+5", 100000.0),
        (b"0.0e1", 0.0),
        (b"1" + b"0" * 400, float("inf")),
        (b"'\\'\"'", "'\""),
        (b'"\\ud83d\\ude00\\u0000\xc0\x80\xc3\xa9"', "\U0001f600\0\0\u00e9"),
        (b'"\\/\\b\\f\\n\\r\\t\\\\"', "/\b\f\n\r\t\\"),
        (b"[ true,false , null,{ } ]", [True, False, None, {}]),
    ],
)
def test_values(text: bytes, value: Any) -> None:
    for data in (text, b'{"x":' + text + b"}"):
        found = loads(data)
        if isinstance(found, dict):
            found = found["x"]
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"driver":"null-co"} junk', "Expecting at most one JSON value"),
        ("{} {@}", "Expecting at most one JSON value"),
        ("{@} {}", "JSON parse error, stray '@'"),
        ("{", "JSON parse error, premature EOI"),
        ('{"a":1,', "JSON parse error, premature EOI"),
        ('{"a":1,"a":2', "JSON parse error, duplicate key"),
        ('{"a":tru', "JSON parse error, invalid keyword 'tru'"),
        ('{"a":-', "JSON parse error, stray '-'"),
        ('{"driver":"null-co', "JSON parse error, stray '\"null-co'"),
        ('{"a":%d}', "JSON parse error, stray '%'"),
        ('{"a":' + "[" * 1100, "JSON nesting depth limit exceeded"),
    ],
)
def test_loads_errors(text: str, message: str) -> None:
    with pytest.raises(JsonError) as caught:
        loads(text)
    assert caught.value.desc == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text("abc", max_size=3), JSON, max_size=5),
    st.sampled_from([b"", b" ", b"\r\n", b"@"]),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_fast_and_slow_input_agree(value: Any, after: bytes) -> None:
    data = json.dumps(value).encode() + after
    whole = JsonStream().feed(data)
    slow = JsonStream()
    bytewise = [item for byte in data for item in slow.feed(bytes([byte]))]
    assert repr(whole) == repr(bytewise)


FRAGMENTS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b'"a"', b"1", b"-", b"0", b".", b"e",
     b"true", b"x", b"@", b"\n", b" ", b"\xff", b"\xc3", b"\x00", b"\\u", b"\\ud800", b"%"]
)  # fmt: skip


@given(st.lists(FRAGMENTS | st.binary(max_size=4), max_size=40), st.integers(1, 7))
@settings(max_examples=40)
def test_any_bytes_any_split(pieces: list[bytes], step: int) -> None:
    """Whatever comes and however it is cut: the same outcomes, none of them an exception."""
    data = b"".join(pieces)
    whole = JsonStream().feed(data)
    split = JsonStream()
    cut = [item for at in range(0, len(data), step) for item in split.feed(data[at : at + step])]
    assert repr(whole) == repr(cut)
    for item in whole:
        if not isinstance(item, JsonError):
            dumps(item).encode("ascii")

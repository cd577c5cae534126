# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From the bytes of one token to a value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.qapi.json_scalars import JsonError, parse_integer, parse_string, parse_word, shown


@pytest.mark.parametrize(
    ("token", "value"),
    [
        (b'""', ""),
        (b"'a\"b'", 'a"b'),
        (b'"\\u0041\\u00e9\\uFFFD"', "A\u00e9\ufffd"),
        (b'"\\ud83d\\ude00x"', "\U0001f600x"),
        (b'"\\u0000\xc0\x80"', "\0\0"),
        (b'"\\\'\\"\\/\\b\\f\\n\\r\\t\\\\"', "'\"/\b\f\n\r\t\\"),
    ],
)
def test_strings(token: bytes, value: str) -> None:
    assert parse_string(token) == value


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b'"\\x"', "invalid escape sequence in string"),
        (b'"\xc3("', "invalid UTF-8 sequence in string"),
        (b'"\xed\xa0\x80"', "invalid UTF-8 sequence in string"),
        (b'"\xef\xbf\xbf"', "invalid UTF-8 sequence in string"),
        (b'"\xc3\\x"', "invalid UTF-8 sequence in string"),
        (b'"\\x\xc3"', "invalid escape sequence in string"),
        (b'"\\u12"', '\\u12" is not a valid Unicode character'),
        (b'"\\ufdd0zz"', "\\ufdd0 is not a valid Unicode character"),
        (b'"\\ud83d\\u0041"', "\\ud83d is not a valid Unicode character"),
        (b'"\\udbff\\udfff"', "\\udbff\\udfff is not a valid Unicode character"),
    ],
)
def test_broken_strings(token: bytes, text: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_string(token)
    assert caught.value.desc == f"JSON parse error, {text}"


@given(st.integers(-(2**70), 2**70))
@settings(max_examples=100)
def test_integers(number: int) -> None:
    found = parse_integer(str(number))
    assert found == (number if -(2**63) <= number < 2**64 else float(number))
    assert type(found) is (int if -(2**63) <= number < 2**64 else float)


def test_words() -> None:
    assert [parse_word(word) for word in (b"true", b"false", b"null")] == [True, False, None]
    with pytest.raises(JsonError, match="invalid keyword 'nul'"):
        parse_word(b"nul")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xe2\x82\xff", "\ufffd\ufffd"),
        (b"\xe2\x82\xac\xff", "\u20ac\ufffd"),
        (b"\x80\x81", "\ufffd\ufffd"),
        (b"\xf0\x80\x80\x80", "\ufffd"),
        (b"\xfc\x84\x80\x80\x80\x80z", "\ufffdz"),
        (b"\xc3(", "\ufffd("),
        (b"\xc0\x80", "\0"),
        (b"a\0b", "a"),
    ],
)
def test_shown(data: bytes, text: str) -> None:
    assert shown(data) == text

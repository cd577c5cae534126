# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a client may say when, and how it is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.qmp.session import COMMANDS, NEGOTIATING, NO_ID, Refused, Request, Session

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "x"}


def ready(*capabilities: str) -> Session:
    session = Session()
    session.negotiated(capabilities)
    return session


def refusal(session: Session, text: str) -> tuple[str, str, Any]:
    (item,) = session.receive(text.encode())
    with pytest.raises(Refused) as caught:
        session.check(item)
    return caught.value.error.error_class, caught.value.error.desc, caught.value.id


def test_greeting() -> None:
    assert Session().greeting(VERSION) == (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"},'
        b' "capabilities": ["oob"]}}\r\n'
    )
    assert b'"capabilities": []' in Session().greeting(VERSION, with_oob=False)


def test_negotiation() -> None:
    session = Session()
    assert session.state == NEGOTIATING
    for text in ('{"execute":"query-jobs","id":3}', '{"execute":"bogus","id":3}'):
        assert refusal(session, text) == (
            "CommandNotFound",
            "Expecting capabilities negotiation with 'qmp_capabilities'",
            3,
        )
    (item,) = session.receive(b'{"execute":"qmp_capabilities"} ')
    assert session.check(item) == Request("qmp_capabilities", {}, NO_ID, False)
    session.negotiated(["oob"])
    assert session.state == COMMANDS
    with pytest.raises(QmpError) as caught:
        session.negotiated([])
    assert caught.value.error_class == "CommandNotFound"
    assert caught.value.desc == "Capabilities negotiation is already complete, command ignored"
    assert session.capabilities == {"oob"}


@pytest.mark.parametrize(
    ("text", "desc", "request_id"),
    [
        ('{"execute":"x","foo":1}', "QMP input member 'foo' is unexpected", NO_ID),
        ('{"execute":5}', "QMP input member 'execute' must be a string", NO_ID),
        ('{"foo":1,"execute":5}', "QMP input member 'execute' must be a string", NO_ID),
        ('{"execute":null}', "QMP input member 'execute' must be a string", NO_ID),
        ("{}", "QMP input lacks member 'execute'", NO_ID),
        ('{"id":null}', "QMP input lacks member 'execute'", None),
        ("[]", "QMP input must be a JSON object", NO_ID),
        ('"x"', "QMP input must be a JSON object", NO_ID),
        ('{"execute":"x","arguments":[]}', "QMP input member 'arguments' must be an object", NO_ID),
        ('{"arguments":null}', "QMP input member 'arguments' must be an object", NO_ID),
        ('{"exec-oob":"x","id":1}', "QMP input member 'exec-oob' is unexpected", 1),
        ("@", "JSON parse error, stray '@'", NO_ID),
    ],
)
def test_members(text: str, desc: str, request_id: Any) -> None:
    assert refusal(ready(), text) == ("GenericError", desc, request_id)


def test_out_of_band() -> None:
    session = ready("oob")
    (item,) = session.receive(b'{"exec-oob":"query-jobs","id":2}')
    assert session.check(item) == Request("query-jobs", {}, 2, True)
    assert refusal(session, '{"exec-oob":5}')[1] == "QMP input member 'exec-oob' must be a string"
    assert (
        refusal(session, '{"exec-oob":"a","execute":"b"}')[1]
        == "QMP input member 'execute' clashes with 'exec-oob'"
    )


def test_replies() -> None:
    session = ready()
    assert session.success({}, NO_ID) == b'{"return": {}}\r\n'
    assert session.success([], 1) == b'{"return": [], "id": 1}\r\n'
    assert session.failure(QmpError("no", "DeviceNotFound"), "x") == (
        b'{"id": "x", "error": {"class": "DeviceNotFound", "desc": "no"}}\r\n'
    )


def test_pretty() -> None:
    session = Session(pretty=True)
    assert session.success({"a": "\n"}, NO_ID) == (
        b'{\r\n    "return": {\r\n        "a": "\\n"\r\n    }\r\n}\r\n'
    )


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b'{"execute":"x"}', b'{"id":[', b"]}"])))
@settings(max_examples=50)
def test_any_bytes_get_well_formed_answers(chunks: list[bytes]) -> None:
    session = ready()
    for chunk in chunks:
        for item in session.receive(chunk):
            try:
                request = session.check(item)
                reply = session.success({}, request.id)
            except Refused as exc:
                reply = session.failure(exc.error, exc.id)
            assert reply.endswith(b"}\r\n")
            assert isinstance(json.loads(reply), dict)

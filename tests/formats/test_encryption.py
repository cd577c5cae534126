# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What encrypted formats share: passwords, headers in a place of their own, long requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.encryption import (
    LuksHeader,
    Place,
    check_create_options,
    find_password,
)
from qsd.qapi.convert import from_json
from qsd.qapi.schema import find_type
from tests.formats.secrets import SecretRig

AT = 65536


def options(**members: Any) -> Any:
    declared: Any = find_type("QCryptoBlockCreateOptionsLUKS")
    return from_json(declared, {key.replace("_", "-"): value for key, value in members.items()})


FAST = {"cipher_alg": "aes-128", "cipher_mode": "cbc", "ivgen_alg": "plain64", "iter_time": 0}


def in_rig(story: Callable[[SecretRig, Place], Awaitable[None]], length: int | None = None) -> None:
    async def main() -> None:
        async with SecretRig() as rig:
            memory = await rig.memory("m", 4 << 20)
            await story(rig, Place(memory.node, AT, length))

    run(main())


def test_passwords() -> None:
    async def story(rig: SecretRig, place: Place) -> None:
        assert find_password(rig.graph, "s") == b"one"
        await rig.add_secret("nul", data="YQBi", format="base64")
        for name, text in [
            (None, "Parameter 'key-secret' is required for cipher"),
            ("none", "No secret with id 'none'"),
            ("raw", "Data from secret raw is not valid UTF-8"),
            ("nul", "Data from secret nul is not valid UTF-8"),
        ]:
            with pytest.raises(QmpError, match=text):
                find_password(rig.graph, name)

    in_rig(story)


def test_a_header_in_its_place() -> None:
    async def story(rig: SecretRig, place: Place) -> None:
        made, key = await LuksHeader.create(
            place, rig.pool, check_create_options(options(**FAST)), b"one"
        )
        assert len(key) == 16
        before = bytearray(AT)
        await place.node.read(0, memoryview(before))
        assert not any(before)
        again = await LuksHeader.read(place, rig.pool)
        assert again.header.uuid == made.header.uuid
        assert await again.unlock(b"one") == key
        assert await again.find_slot(b"two") is None
        with pytest.raises(QmpError, match="Invalid password, cannot unlock any keyslot"):
            await again.unlock(b"two")
        await again.store_key(3, key, b"two", 0)
        assert await (await LuksHeader.read(place, rig.pool)).find_slot(b"two") == (3, key)

    in_rig(story)


def test_no_header_outside_of_its_place() -> None:
    async def story(rig: SecretRig, place: Place) -> None:
        with pytest.raises(QmpError, match="LUKS header is longer than the space for it"):
            await LuksHeader.create(place, rig.pool, check_create_options(options(**FAST)), b"one")

    in_rig(story, 4096)


def test_options() -> None:
    spec = check_create_options(options())
    assert spec.cipher == ("aes-256", "xts", "plain64", None)
    assert (spec.hash_spec, spec.iter_time_ms) == ("sha256", 2000)
    spec = check_create_options(options(cipher_mode="cbc", ivgen_alg="essiv"))
    assert spec.cipher[3] == "sha256"
    with pytest.raises(QmpError, match="Algorithm 'des' not supported"):
        check_create_options(options(cipher_alg="des"))


def test_time_that_runs_backwards() -> None:
    async def story(rig: SecretRig, place: Place) -> None:
        spec = check_create_options(options(**{**FAST, "iter_time": -1}))
        with pytest.raises(QmpError, match="too large to scale: Numerical result out of range"):
            await LuksHeader.create(place, rig.pool, spec, b"one")

    in_rig(story)

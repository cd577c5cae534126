# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.qapi.model import (
    NULL,
    UNSTABLE,
    AlternateType,
    ArrayType,
    BuiltinType,
    Empty,
    EnumType,
    Struct,
    StructType,
    branch_type,
    member,
    members,
    resolve,
)
from qsd.qapi.schema.block_options import (
    BlockdevCacheOptions,
    BlockdevOptions,
    BlockdevOptionsGenericFormat,
    BlockdevOptionsRaw,
)
from qsd.qapi.schema.block_protocols import BlockdevOptionsFile, BlockdevOptionsNull

OPTIONS = "qsd.qapi.schema.block_options"


class Base(Struct):
    needed: str


class Derived(Base):
    plain_one: int | None = None
    with_underscore: bool | None = member("with_underscore", default=None, features=UNSTABLE)
    in_: list[str] | None = member("in", default=None)


def test_members_come_base_first_with_their_names() -> None:
    assert [(m.attr, m.name, m.optional) for m in members(Derived)] == [
        ("needed", "needed", False),
        ("plain_one", "plain-one", True),
        ("with_underscore", "with_underscore", True),
        ("in_", "in", True),
    ]
    assert [m.features for m in members(Derived)] == [(), (), ("unstable",), ()]
    assert members(Empty) == ()


def test_types_of_members() -> None:
    needed, plain, _, listed = (m.type for m in members(Derived))
    assert isinstance(needed, BuiltinType)
    assert needed.json_type == "string"
    assert isinstance(plain, BuiltinType)
    assert plain.bounds == (-(2**63), 2**63 - 1)
    assert isinstance(listed, ArrayType)
    assert listed.element.name == "str"


def test_absent_members_are_none_on_the_instance() -> None:
    made = Derived(needed="x")
    assert (made.needed, made.plain_one, made.with_underscore, made.in_) == ("x", None, None, None)
    assert repr(made) == "Derived(needed='x')"


def test_equality_compares_class_and_members() -> None:
    assert Derived(needed="x", plain_one=1) == Derived(needed="x", plain_one=1)
    assert Derived(needed="x", plain_one=1) != Derived(needed="x")
    assert Base(needed="x") != Derived(needed="x")
    with pytest.raises(TypeError):
        hash(Base(needed="x"))


def test_construction_refuses_missing_and_unknown_members() -> None:
    with pytest.raises(TypeError, match="lacks the argument 'needed'"):
        Base()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has no member 'other'"):
        Base(needed="x", other=1)  # type: ignore[call-arg]


def test_union_carries_its_branch() -> None:
    options = BlockdevOptions(driver="null-co", node_name="n", branch=BlockdevOptionsNull(size=5))
    assert options.driver == "null-co"
    assert isinstance(options.branch, BlockdevOptionsNull)
    assert options.branch.size == 5
    assert options != BlockdevOptions(driver="null-co", node_name="n", branch=BlockdevOptionsNull())


@pytest.mark.parametrize("branch", [None, BlockdevOptionsFile(filename="f")])
def test_union_refuses_the_wrong_branch(branch: Struct | None) -> None:
    with pytest.raises(TypeError, match="its tag asks for BlockdevOptionsNull"):
        BlockdevOptions(driver="null-co", branch=branch)


def test_branches_are_found_in_other_modules() -> None:
    assert branch_type(BlockdevOptions, "raw") is BlockdevOptionsRaw
    assert branch_type(BlockdevOptions, "file") is BlockdevOptionsFile
    assert branch_type(BlockdevOptions, "vdi") is BlockdevOptionsGenericFormat
    assert branch_type(BlockdevOptions, "bogus") is None


def test_resolve_tells_the_kinds_apart() -> None:
    enum = resolve("BlockdevDriver", OPTIONS)
    assert isinstance(enum, EnumType)
    assert "qcow2" in enum.values
    alternate = resolve("BlockdevRefOrNull", OPTIONS)
    assert isinstance(alternate, AlternateType)
    assert [case.name for case in alternate.cases] == ["BlockdevOptions", "str", "null"]
    struct = resolve("BlockdevCacheOptions", OPTIONS)
    assert isinstance(struct, StructType)
    assert struct.cls is BlockdevCacheOptions
    elsewhere = resolve("list[SocketAddress]", OPTIONS)
    assert elsewhere.name == "[SocketAddress]"


def test_resolve_refuses_what_nobody_declares() -> None:
    with pytest.raises(NameError, match="Bogus"):
        resolve("Bogus", OPTIONS)
    with pytest.raises(NameError, match="Bogus"):
        resolve("Bogus", __name__)


def test_enum_values_keep_their_features() -> None:
    kinds = resolve("ObjectType", "qsd.qapi.schema.qom")
    assert isinstance(kinds, EnumType)
    assert kinds.features == {
        "x-remote-object": ("unstable",),
        "x-vfio-user-server": ("unstable",),
    }


def test_null_is_not_absence() -> None:
    assert NULL is not None
    assert not NULL
    assert repr(NULL) == "NULL"

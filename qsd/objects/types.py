# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The object types: one row for each, and what follows from the rows.

A row may name the class that implements the type; the class declares the properties.  Types that
are not user-creatable have no class here: they are listed because management tools look at the
list, and their objects, as far as there are any, live in other packages.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from qsd.objects.base import Property, QomObject, UserCreatable
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_CREATABLE = ("user-creatable",)


class TypeInfo(NamedTuple):
    """What there is to know about a type.

    Attributes:
        name: Its name.
        parent: The type it is derived from, or None.
        abstract: Whether there are no objects of just this type.
        interfaces: The interfaces that it adds to those of its parent.
        implementation: "module:class" in this package, or "".
    """

    name: str
    parent: str | None
    abstract: bool = False
    interfaces: tuple[str, ...] = ()
    implementation: str = ""


TYPES: Final[tuple[TypeInfo, ...]] = (
    TypeInfo("qio-channel-null", "qio-channel"),
    TypeInfo("authz-simple", "authz", False, _CREATABLE, "authz:AuthzSimple"),
    TypeInfo("secret_common", "object", True, _CREATABLE, "secret:SecretCommon"),
    TypeInfo("qio-channel-socket", "qio-channel"),
    TypeInfo("fw_cfg-data-generator", "interface", True),
    TypeInfo("container", "object"),
    TypeInfo("interface", None, True),
    TypeInfo("tls-creds-anon", "tls-creds", False, _CREATABLE, "tls_creds:TlsCredsAnon"),
    TypeInfo("pr-manager-helper", "pr-manager", False, (), "pr_manager:PrManagerHelper"),
    TypeInfo("iothread", "event-loop-base", False, (), "iothread:IOThread"),
    TypeInfo("secret", "secret_common", False, (), "secret:Secret"),
    TypeInfo("authz", "object", True),
    TypeInfo("chardev-serial", "chardev-fd"),
    TypeInfo("qio-channel", "object", True),
    TypeInfo("chardev-mux", "chardev"),
    TypeInfo("tls-creds-psk", "tls-creds", False, _CREATABLE, "tls_creds:TlsCredsPsk"),
    TypeInfo("tls-creds", "object", True, (), "tls_creds:TlsCreds"),
    TypeInfo("qio-channel-file", "qio-channel"),
    TypeInfo("qio-channel-command", "qio-channel"),
    TypeInfo("qio-channel-websock", "qio-channel"),
    TypeInfo("chardev-pipe", "chardev-fd"),
    TypeInfo("main-loop", "event-loop-base", False, (), "iothread:MainLoop"),
    TypeInfo("chardev-parallel", "chardev"),
    TypeInfo("chardev-fd", "chardev", True),
    TypeInfo("qio-channel-tls", "qio-channel"),
    TypeInfo("qio-net-listener", "object"),
    TypeInfo("authz-list-file", "authz", False, _CREATABLE, "authz:AuthzListFile"),
    TypeInfo("pr-manager", "object", True, _CREATABLE),
    TypeInfo("chardev-null", "chardev"),
    TypeInfo("chardev-ringbuf", "chardev"),
    TypeInfo("event-loop-base", "object", True, _CREATABLE, "iothread:EventLoopBase"),
    TypeInfo("qio-dns-resolver", "object"),
    TypeInfo("authz-list", "authz", False, _CREATABLE, "authz:AuthzList"),
    TypeInfo("chardev-stdio", "chardev-fd"),
    TypeInfo("chardev", "object", True),
    TypeInfo("user-creatable", "interface", True),
    TypeInfo("chardev-socket", "chardev"),
    TypeInfo("chardev-file", "chardev-fd"),
    TypeInfo("chardev-memory", "chardev-ringbuf"),
    TypeInfo("qio-channel-buffer", "qio-channel"),
    TypeInfo("object", None, True),
    TypeInfo("chardev-udp", "chardev"),
    TypeInfo("tls-creds-x509", "tls-creds", False, _CREATABLE, "tls_creds:TlsCredsX509"),
    TypeInfo(
        "tls-cipher-suites", "tls-creds", False, ("user-creatable", "fw_cfg-data-generator"),
        "tls_creds:TlsCipherSuites",
    ),
    TypeInfo("chardev-pty", "chardev"),
    TypeInfo("thread-context", "object", False, _CREATABLE, "thread_context:ThreadContext"),
    TypeInfo("secret_keyring", "secret_common", False, (), "secret_keyring:SecretKeyring"),
    TypeInfo("throttle-group", "object", False, _CREATABLE, "throttle_group:ThrottleGroup"),
)  # fmt: skip
"""All types, in the order in which the C daemon lists them."""

_FOREIGN_PROPERTIES: Final = {
    "chardev-socket": (Property("connected", "bool"), Property("addr", "SocketAddress")),
}
"""Properties of types whose objects live in other packages, for listing only."""

_INTERFACE: Final = "interface"


def find_type(name: str) -> TypeInfo | None:
    """Return the type of that name, or None."""
    for info in TYPES:
        if info.name == name:
            return info
    return None


def list_types(implements: str | None = None, *, with_abstract: bool = False) -> list[TypeInfo]:
    """Return the types that are, or are derived from, or implement `implements`.

    Args:
        implements: A type or interface; by default every type matches, interfaces included.
        with_abstract: Whether abstract types and interfaces are listed too.
    """
    return [
        info
        for info in TYPES
        if (with_abstract or not info.abstract) and (implements is None or is_a(info, implements))
    ]


def is_a(info: TypeInfo, target: str) -> bool:
    """Tell whether the type is `target`, is derived from it, or implements it.

    A type that implements an interface in two ways does not count: the C daemon calls that cast
    ambiguous.  (``tls-cipher-suites`` has two interfaces and so is no "interface".)
    """
    if target in _ancestry(info):
        return True
    return len([name for name in _interfaces(info) if target in _ancestry(_known(name))]) == 1


def is_interface(info: TypeInfo) -> bool:
    """Tell whether the type is an interface."""
    return _INTERFACE in _ancestry(info)


def user_creatable_names() -> list[str]:
    """Return the names of the types that ``object-add`` can make, sorted."""
    return sorted(info.name for info in list_types("user-creatable"))


def find_creatable(name: str) -> type[UserCreatable] | None:
    """Return the class that ``object-add`` makes for a type, or None where it makes none."""
    info = find_type(name)
    if info is None or info.abstract or not is_a(info, "user-creatable"):
        return None
    found = _load_class(info)
    return found if issubclass(found, UserCreatable) else None


def type_properties(info: TypeInfo) -> Iterator[Property]:
    """Yield the properties that objects of the type have, those of base types first."""
    yield from _load_class(info).class_properties()
    yield from _FOREIGN_PROPERTIES.get(info.name, ())


def _load_class(info: TypeInfo) -> type[QomObject]:
    """Return the class that implements the type, a bare object where none does."""
    module, _, name = info.implementation.partition(":")
    if not module:
        return QomObject
    found: type[QomObject] = getattr(import_module(f"qsd.objects.{module}"), name)
    return found


def _known(name: str) -> TypeInfo:
    """Return a type that the table itself refers to."""
    found = find_type(name)
    if found is None:
        raise LookupError(name)
    return found


def _ancestry(info: TypeInfo) -> list[str]:
    """Return the names of the type and all it is derived from."""
    names = [info.name]
    while info.parent is not None:
        info = _known(info.parent)
        names.append(info.name)
    return names


def _interfaces(info: TypeInfo) -> list[str]:
    """Return the interfaces that the type and its ancestors have, each once."""
    names: dict[str, None] = {}
    for name in _ancestry(info):
        names |= dict.fromkeys(_known(name).interfaces)
    return list(names)

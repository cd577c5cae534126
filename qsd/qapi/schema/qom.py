# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The object model: object-add and queries (QMP reference, "QEMU object model (QOM)")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import UNSTABLE, Struct, Union, command, commands

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar


class ObjectPropertyInfo(Struct):
    """One property (QMP reference, "ObjectPropertyInfo")."""

    name: str
    type: str
    description: str | None = None
    default_value: Any | None = None


class QomListArguments(Struct):
    """QMP reference, "qom-list": the arguments."""

    path: str


class QomGetArguments(Struct):
    """QMP reference, "qom-get": the arguments."""

    path: str
    property: str


class QomSetArguments(Struct):
    """QMP reference, "qom-set": the arguments."""

    path: str
    property: str
    value: Any


class ObjectTypeInfo(Struct):
    """One type of objects (QMP reference, "ObjectTypeInfo")."""

    name: str
    abstract: bool | None = None
    parent: str | None = None


class QomListTypesArguments(Struct):
    """QMP reference, "qom-list-types": the arguments."""

    implements: str | None = None
    abstract: bool | None = None


class QomListPropertiesArguments(Struct):
    """QMP reference, "qom-list-properties": the arguments."""

    typename: str


ObjectType: TypeAlias = Literal[
    "authz-list",
    "authz-listfile",
    "authz-pam",
    "authz-simple",
    "can-bus",
    "can-host-socketcan",
    "colo-compare",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "cryptodev-backend-lkcf",
    "cryptodev-vhost-user",
    "dbus-vmstate",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "filter-replay",
    "filter-rewriter",
    "input-barrier",
    "input-linux",
    "iothread",
    "main-loop",
    "memory-backend-epc",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "pef-guest",
    "pr-manager-helper",
    "qtest",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "secret",
    "secret_keyring",
    "sev-guest",
    "thread-context",
    "s390-pv-guest",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
    "tls-cipher-suites",
    "x-remote-object",
    "x-vfio-user-server",
]
"""The types of user-creatable objects (QMP reference, "ObjectType")."""


class ObjectOptions(Union):
    """An object to be created (QMP reference, "ObjectOptions")."""

    qom_type: ObjectType
    id: str

    TAG: ClassVar[str] = "qom-type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "authz-list": "AuthZListProperties",
        "authz-listfile": "AuthZListFileProperties",
        "authz-pam": "AuthZPAMProperties",
        "authz-simple": "AuthZSimpleProperties",
        "can-host-socketcan": "CanHostSocketcanProperties",
        "colo-compare": "ColoCompareProperties",
        "cryptodev-backend": "CryptodevBackendProperties",
        "cryptodev-backend-builtin": "CryptodevBackendProperties",
        "cryptodev-backend-lkcf": "CryptodevBackendProperties",
        "cryptodev-vhost-user": "CryptodevVhostUserProperties",
        "dbus-vmstate": "DBusVMStateProperties",
        "filter-buffer": "FilterBufferProperties",
        "filter-dump": "FilterDumpProperties",
        "filter-mirror": "FilterMirrorProperties",
        "filter-redirector": "FilterRedirectorProperties",
        "filter-replay": "NetfilterProperties",
        "filter-rewriter": "FilterRewriterProperties",
        "input-barrier": "InputBarrierProperties",
        "input-linux": "InputLinuxProperties",
        "iothread": "IothreadProperties",
        "main-loop": "MainLoopProperties",
        "memory-backend-epc": "MemoryBackendEpcProperties",
        "memory-backend-file": "MemoryBackendFileProperties",
        "memory-backend-memfd": "MemoryBackendMemfdProperties",
        "memory-backend-ram": "MemoryBackendProperties",
        "pr-manager-helper": "PrManagerHelperProperties",
        "qtest": "QtestProperties",
        "rng-builtin": "RngProperties",
        "rng-egd": "RngEgdProperties",
        "rng-random": "RngRandomProperties",
        "secret": "SecretProperties",
        "secret_keyring": "SecretKeyringProperties",
        "sev-guest": "SevGuestProperties",
        "thread-context": "ThreadContextProperties",
        "throttle-group": "ThrottleGroupProperties",
        "tls-creds-anon": "TlsCredsAnonProperties",
        "tls-creds-psk": "TlsCredsPskProperties",
        "tls-creds-x509": "TlsCredsX509Properties",
        "tls-cipher-suites": "TlsCredsProperties",
        "x-remote-object": "RemoteObjectProperties",
        "x-vfio-user-server": "VfioUserServerProperties",
    }


class ObjectDelArguments(Struct):
    """QMP reference, "object-del": the arguments."""

    id: str


ENUM_FEATURES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "ObjectType": {
        "x-remote-object": UNSTABLE,
        "x-vfio-user-server": UNSTABLE,
    },
}
"""Features of single values of the enums above."""


COMMANDS: Final = commands(
    __name__,
    command("qom-list", "QomListArguments", returns="list[ObjectPropertyInfo]"),
    command("qom-get", "QomGetArguments", returns="Any"),
    command("qom-set", "QomSetArguments"),
    command("qom-list-types", "QomListTypesArguments", returns="list[ObjectTypeInfo]"),
    command(
        "qom-list-properties", "QomListPropertiesArguments", returns="list[ObjectPropertyInfo]"
    ),
    command("object-add", "ObjectOptions"),
    command("object-del", "ObjectDelArguments"),
)
"""The commands of this module."""

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Authorization: who may use a network service, by the identity that TLS has established.

* ``authz-simple`` allows one identity.
* ``authz-list`` has rules, of which the first that matches decides, and a policy for the rest.
* ``authz-list-file`` has its list in a file, which may change at any time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from qsd.errors import QmpError, describe, prefixed
from qsd.objects.base import Property, UserCreatable, attribute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qsd.objects.base import Surroundings
    from qsd.qapi.schema.authz import AuthZListProperties, QAuthZListRule

#: Largest list file, bytes: far more than any list of people, far less than the memory.
_MAX_FILE_LENGTH = 16 << 20


class Authz(UserCreatable):
    """Base of the kinds of authorization."""

    TYPE = "authz"

    def is_allowed(self, identity: str) -> bool:
        """Tell whether `identity` may use the service.  Never raises: in doubt the answer is no."""
        del identity
        return False


class AuthzSimple(Authz):
    """Allows one identity.

    Attributes:
        identity: That identity.
    """

    TYPE = "authz-simple"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (attribute("identity", "string"),)

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.identity: str | None = None

    def is_allowed(self, identity: str) -> bool:
        """Tell whether `identity` is the one."""
        return identity == self.identity

    async def complete(self) -> None:
        """Check that there is an identity."""
        if self.identity is None:
            raise QmpError("The 'identity' property must be set")


class AuthzList(Authz):
    """Goes by a list of rules.

    Attributes:
        policy: "allow" or "deny"; what becomes of an identity that no rule matches.
        rules: The rules; the first match decides.
    """

    TYPE = "authz-list"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("policy", "QAuthZListPolicy"),
        attribute("rules", "QAuthZListRule", value_type="list[QAuthZListRule]"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.policy = "deny"
        self.rules: list[QAuthZListRule] = []

    def is_allowed(self, identity: str) -> bool:
        """Tell what the rules say about `identity`."""
        return apply_rules(self.rules, self.policy, identity)


class AuthzListFile(Authz):
    """Goes by a list in a file, in JSON of the form of :class:`AuthzList`'s properties.

    With `refresh`, the file is looked at again whenever someone asks: a file that was changed or
    replaced counts at once, and while it cannot be read or parsed nobody is allowed.

    Attributes:
        filename: The file.
        refresh: Whether changes count.
    """

    TYPE = "authz-list-file"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("filename", "string"),
        attribute("refresh", "bool"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.filename: str | None = None
        self.refresh = True
        self._list: AuthZListProperties | None = None
        self._version: tuple[int, ...] | None = None

    def is_allowed(self, identity: str) -> bool:
        """Tell what the list says about `identity`."""
        if self.refresh:
            self._refresh()
        if self._list is None:
            return False
        return apply_rules(self._list.rules or (), self._list.policy or "deny", identity)

    async def complete(self) -> None:
        """Read the list.

        Raises:
            QmpError: There is no file name, or the file cannot be read or parsed.
        """
        if self.filename is None:
            raise QmpError("filename not provided")
        self._version = self._current_version()
        self._list = _read_list(self.filename)

    def _refresh(self) -> None:
        """Read the list again if the file is another one than last time."""
        version = self._current_version()
        if version is not None and version == self._version:
            return
        self._version = version
        self._list = None
        if version is not None and self.filename is not None:
            try:
                self._list = _read_list(self.filename)
            except QmpError:
                self._version = None  # so that the next question tries again

    def _current_version(self) -> tuple[int, ...] | None:
        """Return what changes when the file does, None if there is no file."""
        try:
            status = os.stat(self.filename or "")
        except (OSError, ValueError):
            return None
        return (
            status.st_dev,
            status.st_ino,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_size,
        )


def apply_rules(rules: Iterable[QAuthZListRule], policy: str, identity: str) -> bool:
    """Tell what `rules`, and `policy` after them, say about `identity`."""
    for rule in rules:
        if rule.format == "glob":
            matches = matches_glob(rule.match, identity)
        else:
            matches = rule.match == identity
        if matches:
            return rule.policy == "allow"
    return policy == "allow"


def matches_glob(pattern: str, text: str) -> bool:
    """Tell whether `text` matches `pattern`: ``*`` is any text, ``?`` any one character.

    The time is bounded by the product of the lengths: identities come from peers.
    """
    at, star, resume = 0, -1, 0
    index = 0
    while index < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, index
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[index]):
            at += 1
            index += 1
        elif star >= 0:
            # Let the last "*" take one character more.  An earlier "*" need not be tried again.
            resume += 1
            at, index = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")


def _read_list(filename: str) -> AuthZListProperties:
    """Read and parse a list.

    Raises:
        QmpError: It cannot be read or is not such a list.
    """
    from qsd.qapi.convert import from_json
    from qsd.qapi.json_text import loads
    from qsd.qapi.schema.authz import AuthZListProperties

    try:
        with open(filename, "rb") as handle:
            content = handle.read(_MAX_FILE_LENGTH + 1)
    except OSError as exc:
        raise QmpError(f"Unable to read '{filename}': {describe(exc)}") from None
    if len(content) > _MAX_FILE_LENGTH:
        raise QmpError(f"Unable to read '{filename}': File too large")
    try:
        value = loads(content)
    except (QmpError, ValueError) as exc:
        raise QmpError(f"Unable to parse '{filename}': {describe(exc)}") from None
    if not isinstance(value, dict):
        raise QmpError("File must contain a JSON object")
    try:
        return from_json(AuthZListProperties, value)
    except QmpError as exc:
        raise prefixed(exc, f"Unable to parse '{filename}': ") from None

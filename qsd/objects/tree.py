# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The composition tree: which objects there are and how they are found.

::

    /               container
    |-- objects     container; what object-add made
    `-- chardevs    container; the character devices

``/objects`` and ``/chardevs`` come into being when they are first used and then stay.

An absolute path starts with ``/`` and names every step; empty steps do not count.  A partial path
is looked for below every object of the tree, and is *ambiguous* if it leads somewhere from more
than one of them (QMP reference, "qom-get").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from qsd.errors import QmpError
from qsd.objects.base import Container, DescribedObject, QomObject, UserCreatable
from qsd.util.ids import check_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qsd.aio.workers import WorkerPool
    from qsd.qapi.events import EventSink
    from qsd.qapi.model import Struct
    from qsd.qapi.schema.qom import ObjectOptions

    T = TypeVar("T", bound=UserCreatable)


class ObjectTree:
    """The objects of one daemon.

    Args:
        events: Where objects send their events; None drops them.
        workers: The threads for calls that may block; without them such calls are made inline.

    Attributes:
        root: The object at ``/``.
        events, workers: As given.
    """

    def __init__(
        self, *, events: EventSink | None = None, workers: WorkerPool | None = None
    ) -> None:
        self.root = Container()
        self.events = events
        self.workers = workers

    def __repr__(self) -> str:
        return f"<object tree, {sum(1 for _ in self.objects.children())} objects>"

    @property
    def objects(self) -> Container:
        """The container of what users made."""
        return self._container("objects")

    @property
    def chardevs(self) -> Container:
        """The container of the character devices."""
        return self._container("chardevs")

    def _container(self, name: str) -> Container:
        found = self.root.child(name)
        if isinstance(found, Container):
            return found
        container = Container()
        self.root.link(name, container)
        return container

    # Life cycle

    async def add(self, options: ObjectOptions) -> UserCreatable:
        """Make an object, as ``object-add`` does.

        Raises:
            QmpError: The type is not known here, the identifier is malformed or taken, or a
            property
                is refused.  Nothing is left behind then.
        """
        return await self.create(options.qom_type, options.id, options.branch)

    async def create(self, kind: str, name: str, options: Struct | None = None) -> UserCreatable:
        """Make an object of any user-creatable type.

        Args:
            kind: The type.
            name: The new object's identifier.
            options: The members to set, None for the defaults.

        Raises:
            QmpError: As :meth:`add`.
        """
        from qsd.objects.types import find_creatable

        check_id(name)
        cls = find_creatable(kind)
        if cls is None:
            raise QmpError(f"invalid object type: {kind}")
        obj = cls(self)
        try:
            if options is not None:
                obj.set_members(options)
            self.objects.link(name, obj)
            try:
                await obj.complete()
            except BaseException:
                self.objects.unlink(name)
                raise
        except BaseException:
            await obj.finalize()
            raise
        obj.is_complete = True
        return obj

    async def delete(self, name: str) -> None:
        """Take an object away, as ``object-del`` does.

        Raises:
            QmpError: There is no such object, or something uses it.
        """
        obj = self.find(name)
        if obj is None:
            raise QmpError(f"object '{name}' not found")
        if not obj.can_be_deleted():
            raise QmpError(f"object '{name}' is in use, can not be deleted")
        self.objects.unlink(name)
        await obj.finalize()

    async def close(self) -> None:
        """Take all objects away, used or not, the newest first.  Idempotent."""
        for obj in reversed(list(self.objects.children())):
            self.objects.unlink(obj.name)
            if isinstance(obj, UserCreatable):
                await obj.finalize()

    # Finding

    def find(self, name: str) -> UserCreatable | None:
        """Return the user-created object of that identifier, or None."""
        found = self.objects.child(name)
        return found if isinstance(found, UserCreatable) else None

    def find_typed(self, name: str, kind: type[T]) -> T | None:
        """Return the user-created object of that identifier if it is of that class, or None."""
        found = self.find(name)
        return found if isinstance(found, kind) else None

    def resolve(self, name: str, kind: type[T]) -> T:
        """Return the user-created object of that identifier and class.

        Raises:
            QmpError: There is no object of that identifier, or it is of another class.
        """
        found = self.find(name)
        if found is None:
            raise QmpError(kind.NOT_FOUND.format(name))
        if not isinstance(found, kind):
            raise QmpError(kind.WRONG_TYPE.format(name))
        return found

    def find_path(self, path: str) -> tuple[QomObject | None, bool]:
        """Follow an absolute or partial path.

        Returns:
            The object, or None, and whether the path is ambiguous.
        """
        steps = [step for step in path.split("/") if step]
        if path.startswith("/"):
            return _follow(self.root, steps), False
        return _search(self.root, steps)

    # Objects that others own

    def add_chardev(
        self,
        name: str,
        type_name: str,
        properties: Mapping[str, tuple[str, Callable[[], object]]] | None = None,
    ) -> None:
        """Show a character device in the tree.

        Args:
            name: Its identifier.
            type_name: Its type, as "chardev-null".
            properties: Its readable properties, from name to type string and getter.

        Raises:
            QmpError: The name is taken.
        """
        self.chardevs.link(name, DescribedObject(type_name, properties or {}))

    def remove_chardev(self, name: str) -> None:
        """Take a character device out of the tree.

        Raises:
            KeyError: It is not there.
        """
        self.chardevs.unlink(name)


def _follow(start: QomObject, steps: list[str]) -> QomObject | None:
    """Return what `steps` lead to, or None."""
    found: QomObject | None = start
    for step in steps:
        if found is None:
            return None
        found = found.child(step)
    return found


def _search(start: QomObject, steps: list[str]) -> tuple[QomObject | None, bool]:
    """Look for a partial path below `start` and all objects under it."""
    found = _follow(start, steps)
    for child in start.children():
        below, is_ambiguous = _search(child, steps)
        if is_ambiguous or (below is not None and found is not None):
            return None, True
        found = found or below
    return found, False

# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Objects and their properties.

Vocabulary (QMP reference, "QEMU object model (QOM)"):

* An **object** has a type, a name in its parent, and **properties**.  A property has a name, a type
  string and may be readable, writable or both.
* A **container** has children as well.  A child is a property too, of type ``child<TYPE>``, whose
  value is the child's path.
* A **user-creatable** object is what ``object-add`` makes.  Its life::

        cls(tree) --set_member()--> linked into the tree --complete()--> in use --finalize()--> gone

  ``complete`` checks the members against each other and gets what the object needs (reads the file,
  starts the thread).  Where it fails, the object is unlinked and finalized.

Values are typed Python values throughout; :meth:`QomObject.get_json` and :meth:`QomObject.set_json`
convert at the border to QMP, by the same rules as command arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

from qsd.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qsd.aio.workers import WorkerPool
    from qsd.qapi.events import EventSink
    from qsd.qapi.model import Struct

    T = TypeVar("T", bound="UserCreatable")

#: What the schema calls the property types whose name is not that of a schema type.
_SCHEMA_TYPES: Final[Mapping[str, str]] = {"string": "str", "int32_t": "Int32"}


class Property:
    """The declaration of one property.

    Attributes:
        name: Its name.
        type: Its type string, as ``qom-list`` shows it.
        value_type: The type of its values, as an annotation of the schema.
        getter: Called with the object; None where the property is not readable.
        setter: Called with the object and a typed value; None where it is not writable.
        init_only: It may be set while the object is made, but not later.
    """

    __slots__ = ("getter", "init_only", "name", "setter", "type", "value_type")

    def __init__(
        self,
        name: str,
        type_string: str,
        getter: Callable[[Any], object] | None = None,
        setter: Callable[[Any, Any], None] | None = None,
        *,
        value_type: str | None = None,
        init_only: bool = False,
    ) -> None:
        self.name = name
        self.type = type_string
        self.value_type = value_type or _SCHEMA_TYPES.get(type_string, type_string)
        self.getter = getter
        self.setter = setter
        self.init_only = init_only

    def __repr__(self) -> str:
        return f"<property {self.name}: {self.type}>"


def attribute(
    name: str, type_string: str, attr: str | None = None, *, value_type: str | None = None
) -> Property:
    """Declare a property that is kept in an attribute and may be read and written at any time.

    Args:
        name: The property's name.
        type_string: Its type string.
        attr: The attribute; by default the name with ``_`` for ``-``.
        value_type: The type of its values, where it does not follow from `type_string`.
    """
    place = attr or name.replace("-", "_")

    def getter(obj: object) -> object:
        return getattr(obj, place)

    def setter(obj: object, value: object) -> None:
        setattr(obj, place, value)

    return Property(name, type_string, getter, setter, value_type=value_type)


class QomObject:
    """An object of the composition tree.

    Class attributes:
        TYPE: The name of its type.
        PROPERTIES: What its class adds to the properties of the base class.

    Attributes:
        name: Its name in its parent, "" for the root and for what is not linked.
        parent: Where it is linked, or None.
    """

    TYPE: ClassVar[str] = "object"
    PROPERTIES: ClassVar[tuple[Property, ...]] = ()

    def __init__(self) -> None:
        self.name = ""
        self.parent: Container | None = None

    def __repr__(self) -> str:
        # Properties are left out on purpose: some of them are secrets.
        return f"<{self.type_name} {self.path or 'unlinked'}>"

    @property
    def type_name(self) -> str:
        """The name of the object's type."""
        return self.TYPE

    @property
    def path(self) -> str:
        """The absolute path, "" for what is not in a tree."""
        if self.parent is None:
            return ""
        above = self.parent.path
        return above + self.name if above == "/" else f"{above}/{self.name}"

    @classmethod
    def class_properties(cls) -> Iterator[Property]:
        """Yield the properties of the class, those of its base classes first."""
        for base in reversed(cls.__mro__):
            yield from base.__dict__.get("PROPERTIES", ())

    def properties(self) -> Iterator[Property]:
        """Yield the properties of this object; children are not among them."""
        return self.class_properties()

    def children(self) -> Iterator[QomObject]:
        """Yield the children, in the order in which they were added."""
        return iter(())

    def child(self, name: str) -> QomObject | None:
        """Return the child of that name, or None."""
        del name
        return None

    def find_property(self, name: str) -> Property | None:
        """Return the property of that name, or None; children do not count."""
        for item in self.properties():
            if item.name == name:
                return item
        return None

    def get_json(self, name: str) -> object:
        """Read a property, as ``qom-get`` does.

        Raises:
            QmpError: There is no such property, or it is not readable.
        """
        item = self.find_property(name)
        if item is None:
            child = self.child(name)
            if child is None:
                raise self._no_property(name)
            return child.path
        if item.getter is None:
            raise QmpError(f"Property '{self.type_name}.{name}' is not readable")
        value = item.getter(self)
        if value is None and item.value_type == "str":
            return ""  # an unset string reads as an empty one
        return _to_json(value)

    def set_json(self, name: str, value: object) -> None:
        """Write a property, as ``qom-set`` does.

        Raises:
            QmpError: There is no such property, it is not writable, or the value does not fit.
        """
        item = self.find_property(name)
        if item is None and self.child(name) is None:
            raise self._no_property(name)
        if item is None or item.setter is None:
            raise self._not_writable(name)
        self.check_settable(item)
        item.setter(self, _from_json(item, value))

    def check_settable(self, item: Property) -> None:
        """Refuse to set a writable property in the object's present state.

        Raises:
            QmpError: It cannot be set any more.
        """

    def _no_property(self, name: str) -> QmpError:
        return QmpError(f"Property '{self.type_name}.{name}' not found")

    def _not_writable(self, name: str) -> QmpError:
        return QmpError(f"Property '{self.type_name}.{name}' is not writable")


def _type_name(obj: QomObject) -> str:
    """Return the value of the property that every object has."""
    return obj.type_name


QomObject.PROPERTIES = (Property("type", "string", _type_name),)


class DescribedObject(QomObject):
    """An object that lives elsewhere and is shown in the tree, such as a character device.

    Args:
        type_name: The name of its type.
        properties: Its readable properties beside its type, from name to type string and getter.
    """

    def __init__(
        self, type_name: str, properties: Mapping[str, tuple[str, Callable[[], object]]]
    ) -> None:
        super().__init__()
        self._type_name = type_name
        self._properties = tuple(
            Property(name, type_string, lambda _, getter=getter: getter())  # type: ignore[misc]
            for name, (type_string, getter) in properties.items()
        )

    @property
    def type_name(self) -> str:
        """The name of the object's type."""
        return self._type_name

    def properties(self) -> Iterator[Property]:
        """Yield the properties of this object."""
        yield from super().properties()
        yield from self._properties


class Container(QomObject):
    """An object that has nothing but children."""

    TYPE = "container"

    def __init__(self) -> None:
        super().__init__()
        self._children: dict[str, QomObject] = {}

    @property
    def path(self) -> str:
        """The absolute path; a container without a parent is a root."""
        return super().path or "/"

    def children(self) -> Iterator[QomObject]:
        """Yield the children, in the order in which they were added."""
        return iter(self._children.values())

    def child(self, name: str) -> QomObject | None:
        """Return the child of that name, or None."""
        return self._children.get(name)

    def link(self, name: str, obj: QomObject) -> None:
        """Add a child.

        Raises:
            QmpError: The name is taken, by a child or by a property.
        """
        if name in self._children or self.find_property(name):
            raise QmpError(
                f"attempt to add duplicate property '{name}' to object (type '{self.type_name}')"
            )
        self._children[name] = obj
        obj.name = name
        obj.parent = self

    def unlink(self, name: str) -> None:
        """Take a child out of the tree; it keeps its name, for messages of those that still use it.

        Raises:
            KeyError: There is no such child.
        """
        self._children.pop(name).parent = None


class Surroundings(Protocol):
    """What an object sees of the tree that it is made for.

    Attributes:
        events: Where events go, or None.
        workers: The threads for calls that may block, or None where they are made inline.
    """

    events: EventSink | None
    workers: WorkerPool | None

    @property
    def objects(self) -> Container:
        """The container of what users made."""

    def resolve(self, name: str, kind: type[T]) -> T:
        """Return the user-created object of that identifier and class.

        Raises:
            QmpError: There is no object of that identifier, or it is of another class.
        """


class UserCreatable(QomObject):
    """Base of what ``object-add`` makes.

    Class attributes:
        SET_ORDER: The properties whose order of setting matters (one's check looks at another, or
            both may fail), in the order in which the C daemon sets them.  All others come after.
        NOT_FOUND, WRONG_TYPE: What ``resolve`` says where no object has the given
            identifier, and where one of another type has it; "{}" stands for the identifier.

    Attributes:
        tree: The tree it is made for.
        is_complete: Whether :meth:`complete` has succeeded.
    """

    TYPE = "user-creatable"
    SET_ORDER: ClassVar[tuple[str, ...]] = ()
    NOT_FOUND: ClassVar[str] = "object '{}' not found"
    WRONG_TYPE: ClassVar[str] = "object '{}' not found"

    def __init__(self, tree: Surroundings) -> None:
        super().__init__()
        self.tree = tree
        self.is_complete = False

    def set_members(self, options: Struct) -> None:
        """Set the properties that `options` has, in the C daemon's order.

        Raises:
            QmpError: A property is not writable, or its value is refused.
        """
        given = {
            name.replace("_", "-"): value
            for name, value in vars(options).items()
            if value is not None
        }
        names = [name for name in self.SET_ORDER if name in given]
        names += [name for name in given if name not in names]
        for name in names:
            item = self.find_property(name)
            if item is None:
                raise self._no_property(name)
            if item.setter is None:
                raise self._not_writable(name)
            item.setter(self, given[name])

    def check_settable(self, item: Property) -> None:
        """Refuse to set an init-only property once the object is complete."""
        if item.init_only and self.is_complete:
            raise QmpError("Property cannot be set after initialization")

    async def complete(self) -> None:
        """Check the members and get what the object needs.

        Raises:
            QmpError: They do not fit together, or something is not to be had.
        """

    def can_be_deleted(self) -> bool:
        """Tell whether ``object-del`` may take the object away."""
        return True

    async def finalize(self) -> None:
        """Give back what the object holds.  Idempotent; called for incomplete objects too."""


def _from_json(item: Property, value: object) -> Any:
    """Convert what ``qom-set`` was given, with the property's name in the error messages."""
    from qsd.qapi.convert import from_json
    from qsd.qapi.model import Struct

    # One member of a struct: then the rules and messages are those of arguments.
    attr = item.name.replace("-", "_")
    holder = type(
        "PropertyValue",
        (Struct,),
        {"__annotations__": {attr: item.value_type}, "__module__": "qsd.qapi.schema.qom"},
    )
    import qsd.qapi.schema.qom  # noqa: F401 - where the annotation is looked up

    return getattr(from_json(holder, {item.name: value}), attr)


def _to_json(value: object) -> object:
    """Convert the value of a property for the wire."""
    from qsd.qapi.model import Struct

    if isinstance(value, Struct):
        from qsd.qapi.convert import to_json

        return to_json(value)
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value

"""Extension points: implementations by name, ours and those of other packages."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union

from pydantic import Discriminator, Field, Tag

from simcluster.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

wanted: ContextVar[frozenset[str] | None] = ContextVar("wanted", default=None)
"""Kinds that validators made now know beside names; None for all that are registered.

A scenario file names few of all kinds, and a validator of these alone is made in less time.
"""


@functools.cache
def _installed(path: tuple[str, ...]) -> Any:
    """Return the entry points of the packages installed on `path`, whose files are read once."""
    from importlib.metadata import entry_points

    return entry_points()


class Registry(MutableMapping[str, T], Generic[T]):
    """Implementations of one extension point by the name that scenario files use.

    A script adds one by assignment (``SCHEDULERS["mine"] = Mine``), an installed package by an
    entry point in `group`. Ours win a name clash. Whatever is registered can be named in a scenario
    file, stands in ``docs/scenario.md`` and runs through the contract tests of
    `simcluster.testing.contracts`.

    Parameters
    ----------
    group : str
        Group of entry points, such as ``"simcluster.schedulers"``.
    own : mapping of str to T
        Those of this package. One that few runs need is given as ``"module:name"`` and imported
        when it is looked up.

    Attributes
    ----------
    added : dict of str to T
        Those that were assigned since.
    """

    def __init__(self, group: str, own: Mapping[str, T | str]) -> None:
        self.group = group
        self._own: dict[str, T | str] = dict(own)
        self.added: dict[str, T] = {}
        _REGISTRIES.setdefault(group, self)
        self._points: dict[str, EntryPoint] | None = None
        self._loaded: dict[str, T] = {}

    def _others(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, found at the first look-up."""
        if self._points is None:
            self._points = {
                point.name: point for point in _installed(tuple(sys.path)).select(group=self.group)
            }
        return self._points

    def __getitem__(self, name: str) -> T:
        if name in self._own:
            found = self._own[name]
            if isinstance(found, str):
                module, _, attribute = found.partition(":")
                own: T = getattr(importlib.import_module(module), attribute)
                self._own[name] = found = own
            return found
        if name not in self._loaded:
            point = self._others()[name]
            try:
                self._loaded[name] = point.load()
            except Exception as error:
                # Whatever the import of a foreign package raises: which package it was is news.
                package = point.dist.name if point.dist else point.module
                raise DataError(
                    f"{name!r} of the installed package {package} cannot be loaded "
                    f"({type(error).__name__}: {error}). Mend or uninstall that package."
                ) from error
        return self._loaded[name]

    def __setitem__(self, name: str, implementation: T) -> None:
        self._own[name] = self.added[name] = implementation

    def __delitem__(self, name: str) -> None:
        del self._own[name]
        self.added.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        own = tuple(self._own)  # what somebody registers meanwhile comes the next time
        yield from own
        yield from (name for name in self._others() if name not in own)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._others()


Added = dict[str, dict[str, Any]]
"""Entries by group and name."""
_REGISTRIES: dict[str, Registry[Any]] = {}


def groups() -> tuple[str, ...]:
    """Return the groups of entry points of all extension points."""
    return tuple(_REGISTRIES)


def registered() -> tuple[tuple[str, ...], ...]:
    """Return the names of all extension points as they are now, those of each with its group."""
    return tuple((group, *one) for group, one in _REGISTRIES.items())


def added() -> Added:
    """Return what this process has registered by assignment, to be registered in others."""
    return {group: dict(one.added) for group, one in _REGISTRIES.items() if one.added}


def add(entries: Added) -> None:
    """Register `entries`, which another process has registered."""
    for group, implementations in entries.items():
        _REGISTRIES[group].update(implementations)


@dataclass(frozen=True, slots=True, eq=False)
class NameIn:
    """Annotation of a setting that names an entry of a registry, as it is when a file is read."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def known(name: str | None) -> str | None:
            if name is not None and name not in self.registry:
                raise PydanticCustomError("literal_error", "not registered")
            return name

        return core_schema.no_info_after_validator_function(known, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "enum": list(self.registry)}


@dataclass(frozen=True, slots=True, eq=False)
class KindIn:
    """Annotation of a setting: a name, or a table whose ``kind`` is an entry of a registry.

    What counts is the registry as it is when the validator is made, and `wanted`.
    """

    registry: Registry[Any]
    """Settings classes by their ``kind``."""
    key: str
    """The key as written in the scenario file, such as ``workload.arrivals``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        only = wanted.get()
        names = [name for name in self.registry if only is None or name in only]
        classes = {name: self.registry[name] for name in names}

        def tag(value: Any) -> str:
            if isinstance(value, str):
                return "name"
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            if isinstance(kind, str) and kind in classes:
                return kind
            if isinstance(kind, str):
                rule = "no such kind"
                raise ConfigError(f"{self.key}.kind", kind, rule, nearest(kind, self.registry))
            rule = "a name, or a table with its kind is needed"
            raise ConfigError(f"{self.key}.kind", kind, rule, nearest("", self.registry))

        name = Annotated[str, Field(min_length=1), Tag("name")]
        members = [name, *(Annotated[c, Tag(k)] for k, c in classes.items())]
        return handler.generate_schema(Annotated[Union[tuple(members)], Discriminator(tag)])  # noqa: UP007 - made at run time

"""Configurations as text: JSON, and `field.path=value` settings, of frozen dataclasses that may hold one another.

A field whose type is a union of dataclasses is kept with a `kind`, the name of the one that it holds.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from avis_stream.checks import require
from avis_stream.errors import ConfigError

Config = TypeVar("Config")
Kinds = Mapping[str, type]
"""Dataclasses by their `kind`."""
_SUGGESTIONS = 3


def to_json(config: Any, kinds: Kinds) -> str:
    """A configuration as one line of JSON."""
    return json.dumps(_plain(config, kinds), sort_keys=True)


def from_json(cls: type[Config], text: str, kinds: Kinds) -> Config:
    """The configuration that `to_json` wrote.

    Raises:
        ConfigError: Unknown or missing fields, or values of another type.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"configuration must be JSON as written by {cls.__name__}.to_json, got {error}") from error
    try:
        config: Config = _build(cls, plain, "config", kinds)
    except TypeError as error:
        raise ConfigError(f"configuration has a value of another type than {cls.__name__}'s ({error})") from error
    return config


def with_overrides(config: Config, settings: Iterable[str], *, before: str = "") -> Config:
    """A copy of a configuration with `"field.path=value"` settings applied.

    Args:
        config: Left as it is.
        settings: One a field.
        before: What people write before these names, for errors.
    Raises:
        ConfigError: A setting is not `field.path=value`, or names no field; the message lists the fields there are, and
            says which of all may have been meant.
    """
    for setting in settings:
        path, sign, value = setting.partition("=")
        require(bool(sign), "--set", setting, "of the form field.path=value")
        try:
            config = _replace_at(config, path.split("."), value, before + path)
        except _NoFieldError as error:
            raise ConfigError(f"{error}{_did_you_mean(config, path, before)}") from error
    return config


class _NoFieldError(ConfigError):
    """A setting names a field that is not there."""


def _did_you_mean(config: Any, path: str, before: str) -> str:
    """Settings, wherever they are, whose own name is the one written, begins with it, or is close to it."""
    known = [setting.partition("=")[0] for setting in settings_of(config)]
    last = path.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    near = [name for name in known if name.rpartition(".")[2].startswith(last)] if last else []
    ends = {name.rpartition(".")[2] for name in known}
    close = difflib.get_close_matches(last, sorted(ends), n=_SUGGESTIONS)
    found = same or [*near, *(name for end in close for name in known if name.rpartition(".")[2] == end)]
    found = [before + name for name in dict.fromkeys(found)][:_SUGGESTIONS]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def settings_of(config: Any, before: str = "") -> Iterator[str]:
    """All settings that `with_overrides` knows, with the values that they have, as it reads them."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}={_written(value)}"


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any, kinds: Kinds) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain(getattr(value, f.name), kinds) for f in dataclasses.fields(value)}
        for kind, cls in kinds.items():
            if isinstance(value, cls):
                plain["kind"] = kind
        return plain
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type, plain: Any, where: str, kinds: Kinds) -> Any:
    if not isinstance(plain, dict):
        raise ConfigError(f"{where} must be an object, got {plain!r}")
    hints = typing.get_type_hints(cls)
    if unknown := set(plain) - set(hints) - {"kind"}:
        raise ConfigError(f"{where} has unknown fields {sorted(unknown)}; written by a newer version?")
    values = {}
    for name, value in plain.items():
        if name == "kind":
            continue
        target: Any = hints[name]
        if set(typing.get_args(target)) & set(kinds.values()):
            kind: Any = value.get("kind") if isinstance(value, dict) else None
            if kind not in kinds:
                raise ConfigError(f"{where}.{name}.kind must be one of {sorted(kinds)}, got {kind!r}")
            target = kinds[kind]
        is_group = isinstance(target, type) and dataclasses.is_dataclass(target)
        values[name] = _build(target, value, f"{where}.{name}", kinds) if is_group else _value(target, value)
    return cls(**values)


def _value(target: Any, value: Any) -> Any:
    is_tuple = typing.get_origin(target) is tuple or any(typing.get_origin(t) is tuple for t in typing.get_args(target))
    return tuple(value) if is_tuple and value is not None else value


def _replace_at(config: Any, path: list[str], text: str, whole: str) -> Any:
    fields = {f.name for f in dataclasses.fields(config)}
    if path[0] not in fields:
        raise _NoFieldError(f"--set {whole}: no field {path[0]!r} here; there are {sorted(fields)}")
    current = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(current):
            raise ConfigError(f"--set {whole}: {path[0]!r} is a value, not a group of fields")
        return dataclasses.replace(config, **{path[0]: _replace_at(current, path[1:], text, whole)})
    target = typing.get_type_hints(type(config))[path[0]]
    return dataclasses.replace(config, **{path[0]: _parse(target, text, whole)})


def _parse(target: Any, text: str, whole: str) -> Any:
    if dataclasses.is_dataclass(target):
        raise ConfigError(f"--set {whole}: names a group of fields; set one of its fields")
    origin, arguments = typing.get_origin(target), typing.get_args(target)
    try:
        if origin in (typing.Union, types.UnionType):
            return None if text == "none" else _parse(next(a for a in arguments if a is not type(None)), text, whole)
        if origin is tuple:
            if not text and arguments[-1] is Ellipsis:
                return ()
            return tuple(_parse(arguments[0], part, whole) for part in text.split(","))
        if origin is Literal:
            if text not in arguments:
                raise ValueError(f"must be one of {arguments}")
            return text
        if target is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return target(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--set {whole}={text}: {error}") from error

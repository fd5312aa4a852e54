"""Configs from files: TOML and overrides on top of a preset, JSON for the record of a run."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from fathom.config import Config, ObjectiveConfig
from fathom.config.objectives import named_objective

Section = TypeVar("Section")


def load_config(base: Config, toml: Path | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """Lay a TOML file, then `overrides` (`{"grpo.steps": 100}`), over the values of a preset.

    Tables of the file are the sections of `Config`; the string "none" stands for None. Raises ValueError for an
    unknown field (with the nearest name), a value of the wrong type, or a file written for another preset.
    """
    values = read_toml(toml) if toml else {}
    if values.get("preset", base.preset) != base.preset:
        raise ValueError(
            f"{toml} is written for the preset {values['preset']!r}, but {base.preset!r} was asked for; "
            "name the same preset in both places or in one"
        )
    for path, value in (overrides or {}).items():
        _put(values, path, value)
    return _merge(base, values)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a config file. Raises ValueError where it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no config file {path}; check the path given with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def to_json(config: Config) -> str:
    """All fields of `config`, in order; `from_json` gives an equal config back."""
    return json.dumps(asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The config that `to_json` wrote; fields it does not name take their defaults."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the saved config is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("the saved config is not a JSON object with the fields of a config")
    return _merge(Config(), cast(dict[str, object], values))


def _put(values: dict[str, Any], path: str, value: object) -> None:
    """Set `values["grpo"]["steps"]` for the path `grpo.steps`."""
    *sections, field = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[field] = value


def _merge(section: Section, values: Mapping[str, object], prefix: str = "") -> Section:
    """A copy of a config section with `values` laid over it, subsections included."""
    if isinstance(section, ObjectiveConfig) and values.get("name", section.name) != section.name:
        section = cast(Section, named_objective(str(values["name"])))  # a name brings its values along
    hints = get_type_hints(type(section))
    changes: dict[str, object] = {}
    for name, value in values.items():
        path = prefix + name
        if name not in hints:
            raise ValueError(f"{path} is no field of the config{_nearest(path)}")
        current = getattr(section, name)
        if not is_dataclass(current):
            changes[name] = _typed(value, hints[name], path)
        elif isinstance(value, Mapping):
            changes[name] = _merge(current, cast(Mapping[str, object], value), path + ".")
        else:
            raise ValueError(
                f"{path}={value!r} is not a section; set its fields, such as {path}.{fields(current)[0].name}"
            )
    return cast(Section, replace(cast(Any, section), **changes))


def _typed(value: object, hint: Any, path: str) -> object:
    """`value` as the type that a field is declared with; lists become tuples and whole numbers floats."""
    if get_origin(hint) is UnionType:
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        hint = next(choice for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"{path}={value!r} is unknown; choose one of {', '.join(map(str, get_args(hint)))}")
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            items = cast(list[object] | tuple[object, ...], value)
            return tuple(_typed(item, get_args(hint)[0], path) for item in items)
        raise ValueError(f"{path}={value!r} is not a list; give one in square brackets")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{path}={value!r} is of type {type(value).__name__}; give a value of type {hint.__name__}")
    return value


def _nearest(path: str) -> str:
    """The end of a sentence about an unknown `path`: the field spelled most like it, else the sections there are."""
    close = difflib.get_close_matches(path, list(_paths(Config())), n=1)
    sections = [field.name for field in fields(Config) if is_dataclass(getattr(Config(), field.name))]
    return f"; did you mean {close[0]}?" if close else f"; its sections are {', '.join(sections)}"


def _paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of a section's fields, those of subsections after them."""
    for field in fields(section):
        yield prefix + field.name
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _paths(value, f"{prefix}{field.name}.")

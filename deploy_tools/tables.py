"""From TOML tables to frozen dataclasses, refusing unknown keys and wrong types by name."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from deploy_tools.errors import UserError, nearest

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a UserError names the file and the line where it is malformed."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error
    except (OSError, ValueError, RecursionError) as error:
        # ValueError: not UTF-8, or a number with thousands of digits.
        raise UserError(f"{path} cannot be read: {error}.") from error


def from_table(cls: type[T], table: object, where: str) -> T:
    """Build the dataclass `cls` from a table.

    where: the table's place for messages, such as `recipe.toml [model]`.
    Nested dataclasses, tuples, `X | None` and Literal-like checks in `__post_init__` work.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table, got {_kind(table)}.")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise UserError(f'{where} has an unknown key "{key}".', nearest(key, known))
    values = {key: _convert(hints[key], value, f"{where} {key}") for key, value in table.items()}
    missing = [
        name
        for name, field in known.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(typing.get_args(hint), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_table(hint, value, where)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, where)
    if isinstance(value, bool) and hint is not bool:
        raise UserError(f"{where} must be {_name(hint)}, got a boolean.")
    if isinstance(value, hint):
        return value
    raise UserError(f"{where} must be {_name(hint)}, got {_kind(value)}.")


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where} must be a finite number.")
    return number


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    choices = [option for option in options if option is not type(None)]
    for option in choices[:-1]:
        try:
            return _convert(option, value, where)
        except UserError:
            continue
    if len(choices) == 1:
        return _convert(choices[0], value, where)
    try:
        return _convert(choices[-1], value, where)
    except UserError as error:
        names = " or ".join(_name(option) for option in choices)
        raise UserError(f"{where} must be {names}, got {_kind(value)}.") from error


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where} must be a list, got {_kind(value)}.")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(items) != len(value):
        raise UserError(f"{where} must have {len(items)} values, got {len(value)}.")
    return tuple(_convert(h, v, where) for h, v in zip(items, value, strict=True))


def _name(hint: Any) -> str:
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if typing.get_origin(hint) is tuple:
        return "a list"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return known.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: object) -> str:
    kinds = {
        str: "text",
        bool: "a boolean",
        int: "a whole number",
        float: "a number",
        list: "a list",
    }
    return kinds.get(type(value), "a table" if isinstance(value, Mapping) else type(value).__name__)


def to_toml(table: Mapping[str, Any]) -> str:
    """Write nested dicts, lists and scalars as TOML that `read_toml` reads back; None is left out.

    Dicts directly inside the top level become [tables], lists of dicts [[tables]], deeper dicts
    inline tables.
    """
    tables = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    lists = {k: v for k, v in table.items() if _is_table_list(v)}
    lines = _toml_lines({k: v for k, v in table.items() if k not in tables and k not in lists})
    for name, value in tables.items():
        lines += ["", f"[{name}]", *_toml_lines(value)]
    for name, values in lists.items():
        for value in values:
            lines += ["", f"[[{name}]]", *_toml_lines(value)]
    return "\n".join(lines).strip() + "\n"


def _is_table_list(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(item, Mapping) for item in value)
    )


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml_value(value)}" for key, value in table.items() if value is not None]


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_toml_lines(value))} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value)).replace("\x7f", "\\u007f")

"""From TOML tables to dataclasses: every mistake is named, with its place."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_tools.errors import UserError
from deploy_tools.tables import from_table, read_toml, to_toml


@dataclass(frozen=True)
class Inner:
    count: int = 1
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool = False
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    folder: Path = Path()


def problem(table: object) -> UserError:
    with pytest.raises(UserError) as caught:
        from_table(Outer, table, "file")
    return caught.value


def test_everything_that_fits() -> None:
    table = {
        "name": "a", "flag": True, "size": [1, 2], "resize": 3, "words": ["x", "y"],
        "inner": {"count": 2, "rate": 1}, "inners": [{}, {"count": 5}], "folder": "x/y",
    }  # fmt: skip
    outer = from_table(Outer, table, "file")
    assert outer == Outer(
        "a", True, (1, 2), 3, ("x", "y"), Inner(2, 1.0), (Inner(), Inner(5)), Path("x/y")
    )
    assert isinstance(outer.inner.rate, float)
    assert from_table(Outer, {"name": "a", "resize": [4, 5]}, "file").resize == (4, 5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "a", "flg": True}, ["file", '"flg"', 'Did you mean "flag"?']),
        ({"name": "a", "inner": {"cuont": 1}}, ["file inner", '"cuont"', '"count"']),
        ({"name": "a", "inners": [{}, {"ratee": 1}]}, ["inners[1]", '"ratee"', '"rate"']),
        ({}, ["file lacks name"]),
        ([], ["must be a table, got a list"]),
        ({"name": 3}, ["file name must be text, got a whole number"]),
        ({"name": ["a"]}, ["must be text, got a list"]),
        ({"name": True}, ["must be text, got a boolean"]),
        ({"name": "a", "flag": 1}, ["flag must be true or false, got a whole number"]),
        ({"name": "a", "inner": {"count": True}}, ["count must be a whole number, got a boolean"]),
        ({"name": "a", "inner": {"count": 1.0}}, ["count must be a whole number, got a number"]),
        ({"name": "a", "inner": {"rate": True}}, ["rate must be a number, got a boolean"]),
        ({"name": "a", "inner": {"rate": "1"}}, ["rate must be a number, got text"]),
        ({"name": "a", "inner": {"rate": float("nan")}}, ["rate must be a finite number"]),
        ({"name": "a", "inner": {"rate": float("inf")}}, ["rate must be a finite number"]),
        ({"name": "a", "inner": {"rate": 10**400}}, ["rate must be a finite number"]),
        ({"name": "a", "inner": [1]}, ["inner must be a table, got a list"]),
        ({"name": "a", "inners": {}}, ["inners must be a list, got a table"]),
        ({"name": "a", "words": "x"}, ["words must be a list, got text"]),
        ({"name": "a", "words": ["x", 2]}, ["words[1] must be text"]),
        ({"name": "a", "size": [1]}, ["size must have 2 values, got 1"]),
        ({"name": "a", "size": [1, "2"]}, ["size must be a whole number, got text"]),
        ({"name": "a", "resize": "x"}, ["resize must be a whole number or a list, got text"]),
        ({"name": "a", "resize": True}, ["resize must be a whole number or a list, got a bool"]),
    ],
)
def test_what_does_not_fit(table: object, words: list[str]) -> None:
    text = str(problem(table))
    assert all(word in text for word in words), text


KEYS = st.sampled_from([*Outer.__dataclass_fields__, *Inner.__dataclass_fields__, "other", ""])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text("ab~.", max_size=3)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
def test_any_table_gives_a_value_or_a_user_error(table: dict[str, Any], named: bool) -> None:
    if named:
        table["name"] = "a"
    try:
        outer = from_table(Outer, table, "file")
    except UserError:
        return
    assert isinstance(outer.inner.count, int)
    assert isinstance(outer.inner.rate, float)
    hash(outer)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = 1\nb = [1, 2\nc = 3\n", "line 3"),
        (b"a = \xff\n", "cannot be read"),
        (b"a = " + b"9" * 5000, "cannot be read"),
        (b"a = " + b"[" * 50_000, "cannot be read"),
    ],
)
def test_malformed_toml(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_toml(tmp_path / "x.toml")
    assert str(tmp_path / "x.toml") in caught.value.message


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)


def test_toml_is_read_back_as_it_was() -> None:
    table = {
        "name": 'a "quoted" \\ path\nwith a line',
        "model": {"arch": "x", "count": 3, "left_out": None, "rate": 1e-5, "yes": True},
        "data": {"calibration": {"split": "train", "list": ["a", "b"]}, "size": (1, 2)},
        "variant": ({"precision": "int8", "exclude": ()}, {"precision": "bf16"}),
    }
    found = tomllib.loads(to_toml(table))
    assert found["name"] == table["name"]
    assert found["model"] == {"arch": "x", "count": 3, "rate": 1e-5, "yes": True}
    assert found["data"] == {"calibration": {"split": "train", "list": ["a", "b"]}, "size": [1, 2]}
    assert found["variant"] == [{"precision": "int8", "exclude": []}, {"precision": "bf16"}]

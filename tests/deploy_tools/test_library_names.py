"""The reader of library names sees what is used, and complains about what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from library_names import MODULE, Library, Used, names_used

LIBRARY = Library(
    frozenset({"lib", "module"}),
    {"engine": "Engine", "plain": ""},
    {"Engine": {"layers": "Layer", "name": ""}, "Layer": {"kind": "", "stop": ""}},
)


def used(tmp_path: Path, code: str) -> Used:
    path = tmp_path / "code.py"
    path.write_text(f"from typing import Any\n{code}\n")
    return names_used(path, LIBRARY)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("lib.Builder()", (MODULE, "Builder")),
        ("x = flavour.module\nx.Builder()", (MODULE, "Builder")),
        ("x = lib.Mode\ny = x.FAST", ("Mode", "FAST")),
        ("def f(engine: Any): return engine.name", ("Engine", "name")),
        ("def f(engine: Any): return [layer.kind for layer in [engine.layers(0)]]", ("Engine", "layers")),
        ("e = lib.Engine()\nl = e.layers(0)\nl.kind", ("Layer", "kind")),
        ("e = lib.Engine()\nls = [e.layers(i) for i in (1, 2)]\n[l.kind for l in ls]", ("Layer", "kind")),
        ("lib.Engine().layers(0).kind", ("Layer", "kind")),
        ("class C(lib.Layer):\n    def stop(self): pass", ("Layer", "stop")),
        ("class C:\n    engine: Any\n    def f(self): self.engine.name = 1", ("Engine", "name")),
        ("def make() -> Any: pass\nengine = make()\nengine.name", ("Engine", "name")),
        ("f = lambda: flavour.module.Builder", (MODULE, "Builder")),
        ("a, engine = g()\nengine.name", ("Engine", "name")),
    ],
)  # fmt: skip
def test_what_is_seen(tmp_path: Path, code: str, name: tuple[str, str]) -> None:
    found = used(tmp_path, code)
    assert name in found.names
    assert found.complaints == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("lib.Engine().size", "code.py:2: Engine.size is not in the table"),
        ("def f(engine: Any): engine.close()", "Engine.close is not in the table"),
        ("def f(other: Any): other.close()", 'what the variable "other" holds'),
        ("other: Any = f()", 'what the variable "other" holds'),
        ("def make() -> Any: pass\nthing = make()", 'what the variable "thing" holds'),
        ("class C(lib.Layer):\n    def begin(self): pass", "Layer.begin is not in the table"),
    ],
)
def test_what_is_complained_about(tmp_path: Path, code: str, words: str) -> None:
    assert any(words in complaint for complaint in used(tmp_path, code).complaints)


def test_keywords_and_what_is_ours(tmp_path: Path) -> None:
    found = used(tmp_path, "def f(engine: Any, plain: Any): engine.layers(at=1); plain.x; g(b=2)")
    assert found.keywords == {("Engine", "layers", "at")}
    assert found.names == {("Engine", "layers")}
    assert found.complaints == []

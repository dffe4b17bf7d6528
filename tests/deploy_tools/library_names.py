"""Which names of a foreign library our source uses, read from the source.

Values of TensorRT, CUDA and pycuda are `Any` to a type checker. This follows them through a
file, roughly: from the library's module over what its calls return (a table says what that is)
and from variables that are `Any` (a second table says what they hold). A name that is in no
table is a complaint, so neither table can be forgotten.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODULE = "module"
Table = Mapping[str, Mapping[str, str]]
"""Class -> member -> the class of its value or of what it returns; "" for plain Python."""


@dataclass(frozen=True)
class Library:
    """How to recognise a library's values.

    modules: variables and attributes that hold the module itself. holders: variables, attributes
    and parameters that hold an instance, and of what ("": of ours, or plain Python).
    """

    modules: frozenset[str]
    holders: Mapping[str, str]
    table: Table


@dataclass
class Used:
    """What was found: (class or "module", member), keywords, and what is in no table."""

    names: set[tuple[str, str]] = field(default_factory=set)
    keywords: set[tuple[str, str, str]] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)


def names_used(path: Path, library: Library) -> Used:
    """Read one file."""
    tree = ast.parse(path.read_text("utf-8"))
    reader = _Reader(library, path.name, _functions_of_any(tree))
    reader.visit(tree)
    return reader.used


def _functions_of_any(tree: ast.Module) -> set[str]:
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and _is_any(node.returns)
    }


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


class _Reader(ast.NodeVisitor):
    """Visits statements in order and keeps what each variable holds; "?" is unknown."""

    def __init__(self, library: Library, file: str, of_any: set[str]) -> None:
        self.library, self.file, self.of_any = library, file, of_any
        self.used = Used()
        self.scope: dict[str, str] = {}

    # Statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.scope = self.scope, dict(self.scope)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            self.scope[argument.arg] = (
                self._held(argument.arg, argument) if _is_any(argument.annotation) else "?"
            )
        self.generic_visit(node)
        self.scope = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self._value(base)
            own = kind.removeprefix("type:")
            if kind.startswith("type:") and own in self.library.table:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._member(own, method.name, method)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._assign(target, value, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        value = self._value(node.value) if node.value is not None else "?"
        if value == "?" and _is_any(node.annotation) and isinstance(node.target, ast.Name):
            value = self._held(node.target.id, node)
        self._assign(node.target, value, node.value)

    def _assign(self, target: ast.expr, value: str, source: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple):
            for part in target.elts:
                known = isinstance(part, ast.Name) and part.id in self.library.holders
                self._assign(part, self.library.holders[part.id] if known else "?", None)  # type: ignore[attr-defined]
        elif isinstance(target, ast.Name):
            call = source.func if isinstance(source, ast.Call) else None
            if value == "?" and isinstance(call, ast.Name) and call.id in self.of_any:
                value = self._held(target.id, target)
            self.scope[target.id] = value
        else:
            self._value(target)

    def generic_visit(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child)
            else:
                self.visit(child)

    # Expressions: what they hold

    def _value(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return MODULE if node.id in self.library.modules else self.scope.get(node.id, "?")
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Lambda):
            return self._value(node.body)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            return self._comprehension(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child)
        return "?"

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> str:
        for part in node.generators:
            kind = self._value(part.iter)
            if isinstance(part.target, ast.Name):
                found = kind.removeprefix("list:") if kind.startswith("list:") else "?"
                self.scope[part.target.id] = found
            for condition in part.ifs:
                self._value(condition)
        return f"list:{self._value(node.elt)}"

    def _attribute(self, node: ast.Attribute) -> str:
        base = self._value(node.value)
        if base == MODULE:
            self.used.names.add((MODULE, node.attr))
            return f"type:{node.attr}"
        if base.startswith("type:"):
            self.used.names.add((base.removeprefix("type:"), node.attr))
            return "" if base[5:] not in self.library.table else self._result(base[5:], node)
        if base in self.library.table:
            return self._result(base, node)
        if base == "":
            return ""
        if node.attr in self.library.modules:
            return MODULE
        return self.library.holders.get(node.attr, "?")

    def _result(self, kind: str, node: ast.Attribute) -> str:
        self._member(kind, node.attr, node)
        return self.library.table[kind].get(node.attr, "")

    def _call(self, node: ast.Call) -> str:
        kind = self._value(node.func)
        for argument in node.args:
            self._value(argument)
        for keyword in node.keywords:
            self._value(keyword.value)
        function = node.func
        if isinstance(function, ast.Attribute):
            owner = self._value(function.value)
            for keyword in node.keywords:
                if keyword.arg and (owner in self.library.table or owner == MODULE):
                    self.used.keywords.add((owner, function.attr, keyword.arg))
        return kind.removeprefix("type:")

    def _member(self, kind: str, name: str, node: ast.AST) -> None:
        self.used.names.add((kind, name))
        if name not in self.library.table[kind]:
            self._complain(node, f"{kind}.{name} is not in the table")

    def _held(self, name: str, node: ast.AST) -> str:
        if name in self.library.modules:
            return MODULE
        if name not in self.library.holders:
            self._complain(node, f'what the variable "{name}" holds is not in the table')
        return self.library.holders.get(name, "?")

    def _complain(self, node: ast.AST, what: str) -> None:
        self.used.complaints.append(f"{self.file}:{getattr(node, 'lineno', 0)}: {what}")

"""What every study does alike: its options, its rows, its claims and its JSON."""

from __future__ import annotations

import json
import operator
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from benchmarks.environment import describe_environment
from deploy_tools.artifacts import write_text
from deploy_tools.errors import DeployToolsError, UserError

_RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Claim:
    """One sentence of the documentation as a number: its value, its target, and whether it holds.

    value: what was measured, None where it could not be. target: such as ">= 0.935".
    """

    name: str
    value: float | int | str | bool | None
    target: str
    met: bool

    @classmethod
    def that(cls, name: str, value: float | None, relation: str, bound: float) -> Claim:
        """Return a claim judged by `value relation bound`; a value of None is not met.

        >>> Claim.that("top-1", 0.9173, ">=", 0.917).met
        True
        """
        if relation not in _RELATIONS:
            raise UserError(
                f'relation "{relation}" is not known.', f"Known: {', '.join(_RELATIONS)}."
            )
        met = value is not None and bool(_RELATIONS[relation](value, bound))
        return cls(name, value, f"{relation} {bound:g}", met)

    def __str__(self) -> str:
        value = f"{self.value:.6g}" if isinstance(self.value, float) else self.value
        return (
            f"{'met    ' if self.met else 'NOT MET'}  {self.name}: {value} (target {self.target})"
        )


@dataclass
class Results:
    """What a study fills in while it runs; `say` prints a line for people.

    changed: called after each row, each claim and each `add`, so that they can be kept as they
    come. command: what was called, with a word for each path.
    """

    quick: bool
    say: Callable[[str], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    changed: Callable[[], None] = lambda: None
    command: str = ""

    def row(self, **values: Any) -> None:
        """Keep and print one row."""
        self.rows.append(values)
        self.changed()
        self.say("  ".join(f"{key} {_text(value)}" for key, value in values.items()))

    def claim(self, name: str, value: float | None, relation: str, bound: float) -> None:
        """Keep and print one claim, met or not."""
        self.claims.append(Claim.that(name, value, relation, bound))
        self.changed()
        self.say(str(self.claims[-1]))

    def own(self) -> Results:
        """Return empty results that print to the same place, for `add` later."""
        return Results(self.quick, self.say)

    def add(self, own: Results) -> None:
        """Keep the rows and claims of a part of the study, which it has printed already."""
        self.rows += own.rows
        self.claims += own.claims
        self.changed()


def run_study(
    name: str, main: Callable[..., None], options: Sequence[click.Option] = ()
) -> click.Command:
    """Return the command of a study: options --quick, --json and -o/--out, and its own.

    main fills in the Results that it gets; its own options come as keyword arguments. With --json
    the last line on stdout is one object, as `study_object` says, and lines for people go to
    stderr. With -o the object is also written to a file; until it is whole, FILE.part holds what
    is there already, and stays where the study is interrupted or fails. A claim that is not met
    is printed as such; the exit code stays 0, since the study did what it is for.

        run_study("growth", main)()  # at the end of benchmarks/studies/growth.py
    """

    @click.command(name=name, help=main.__doc__ or f"Run the study {name}.")
    @click.option("--quick", is_flag=True, help="Smaller claims, within 5 minutes on 2 cores.")
    @click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
    @click.option("-o", "--out", type=click.Path(path_type=Path), help="Also write the JSON here.")
    @click.pass_context
    def command(
        context: click.Context, /, quick: bool, as_json: bool, out: Path | None, **own: Any
    ) -> None:
        results = Results(quick, lambda line: click.echo(line, err=as_json))
        results.command = command_of(name, context)
        try:
            partly = _kept_as_it_comes(name, results, out)
            main(results, **own)
            made = study_object(name, results.rows, results.claims, results.command)
            text = json.dumps(made, allow_nan=False)
            if out is not None:
                write_text(out, text + "\n")
                partly.unlink(missing_ok=True)
        except DeployToolsError as error:
            click.echo(f"error: {error}", err=True)
            raise SystemExit(error.exit_code) from error
        met = sum(claim.met for claim in results.claims)
        results.say(f"{name}: {met} of {len(results.claims)} claims met.")
        if as_json:
            click.echo(text)

    command.params.extend(options)
    return command


def command_of(name: str, context: click.Context) -> str:
    """Return the command that was called, without where it writes: options in their own order.

    A path is the option's metavar, DIR without one, so that no machine's folders are kept.
    """
    parts = ["python", "-m", f"benchmarks.studies.{name}"]
    for option in context.command.params:
        given = option.name is not None and _is_given(context, option.name)
        if not given or option.name in ("as_json", "out", "keep"):
            continue
        flag, value = option.opts[-1], context.params[str(option.name)]
        if isinstance(option, click.Option) and option.is_flag:
            parts += [flag]
            continue
        for each in value if option.multiple else [value]:
            is_path = isinstance(option.type, click.Path)
            parts += [flag, str(option.metavar or "DIR") if is_path else shlex.quote(str(each))]
    return " ".join(parts)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _kept_as_it_comes(name: str, results: Results, out: Path | None) -> Path:
    """Have each change of the results written beside `out`; returns where."""
    partly = Path() if out is None else out.with_name(f"{out.name}.part")
    if out is not None:
        around = study_object(name, (), (), results.command)

        def write() -> None:
            own = {"rows": results.rows, "claims": [asdict(claim) for claim in results.claims]}
            write_text(partly, json.dumps(around | own) + "\n")

        results.changed = write
    return partly


def study_object(
    name: str, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], command: str
) -> dict[str, Any]:
    """Return the object that a study prints and keeps in benchmarks/results.

    {"command", "study", "environment", "rows", "claims"}
    """
    return {
        "command": command,
        "study": name,
        "environment": describe_environment(),
        "rows": [dict(row) for row in rows],
        "claims": [asdict(claim) for claim in claims],
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

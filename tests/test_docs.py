"""What the README and docs/ say can be typed, exists, and is linked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from deploy_tools.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def typed(page: Path, program: str) -> list[str]:
    """Commands of a program in a page's code blocks and inline code, continuation lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    lines = [line.split("#")[0].strip() for line in blocks.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", text)
    return [c for c in [*lines, *inline] if c.startswith(f"{program} ")]


COMMANDS = [(p.name, c) for p in PAGES for c in typed(p, "deploy-tools")]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_parse(page: str, command: str) -> None:
    words = shlex.split(command)[1:]
    if any(word in ("|", "VARIANT", "...") for word in words):
        pytest.skip("not a command to type")
    found: click.Command = cli
    context = click.Context(cli)
    while isinstance(found, click.Group):
        name, after, words = found.resolve_command(context, words)
        assert after is not None, f"{page}: {command}"
        found = after
        if not words:
            return
    found.make_context(name or "", words)


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in typed(page, "make"):
        assert re.search(rf"^{shlex.split(command)[1]}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.name
)
def test_kept_results_name_their_command_and_no_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    values = json.loads(text)
    assert values["command"].startswith(("python -m benchmarks.studies.", "deploy-tools "))
    assert values["environment"]["cpu"]["model"]
    assert not re.search(r"\"/(home|root|work|tmp|Users)/", text)


def test_the_readmes_table_is_the_kept_result() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "report-demo.json").read_text("utf-8"))
    text = (ROOT / "README.md").read_text("utf-8")
    for variant in report["variants"]:
        if variant["accuracy"]["simulated"]:
            accuracy = variant["accuracy"]
            cells = (
                f"| {100 * accuracy['top1']:.2f} (simulated) |",
                f"{accuracy['logit_sqnr_db']:.1f} dB | not run",
            )
            assert any(all(cell in line for cell in cells) for line in text.splitlines()), variant[
                "id"
            ]
            continue
        run = next(r for r in variant["speed"]["runs"] if r["scenario"] == "offline")
        row = next(
            line for line in text.splitlines()
            if f"| {100 * variant['accuracy']['top1']:.2f} |" in line and f"{run['images_per_s']:,.0f}" in line
        )  # fmt: skip
        assert f"{run['speedup']:.2f}x" in row or variant["id"] == report["baseline"]


def test_the_page_of_peers_is_what_the_kept_results_say() -> None:
    from benchmarks.studies.peers_table import table

    made = table(_kept("peers_accuracy-*.json"), best=True)
    assert _tables("docs/peers.md") == made.removeprefix("### ")


def test_the_page_of_the_ablation_is_what_the_kept_results_say() -> None:
    from benchmarks.studies.ablation_table import table

    made = table(_kept("ablation_accuracy-*.json"))
    page = (ROOT / "docs/ablation.md").read_text("utf-8")
    assert page.partition("\n| row |")[2] == made.removeprefix("| row |")


def test_the_page_of_speed_is_what_the_kept_results_say() -> None:
    from benchmarks.studies.peers_speed_table import table

    assert _tables("docs/speed.md") == table(_kept("peers_speed-*.json")).removeprefix("### ")


def test_the_page_of_settings_is_what_the_kept_results_say() -> None:
    from benchmarks.studies.ablation_speed_table import table

    found = _tables("docs/speed-settings.md")
    assert found == table(_kept("ablation_speed-*.json")).removeprefix("### ")


def _tables(page: str) -> str:
    return (ROOT / page).read_text("utf-8").partition("\n### ")[2]


def _kept(names: str) -> list[dict[str, Any]]:
    files = sorted((ROOT / "benchmarks/results").glob(names))
    return [json.loads(file.read_text("utf-8")) for file in files]

"""The entry point: commands by name, errors as one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Any

import click

from deploy_tools.errors import DeployToolsError, nearest
from deploy_tools.version import __version__

ISSUES = "the project's issue tracker"
# verb -> module; a group's verbs are in its own module.
COMMANDS = {
    "demo": "demo",
    "init": "init",
    "run": "run",
    "train": "train",
    "fuse": "fuse",
    "export": "export",
    "calibrate": "calibrate",
    "quantize": "quantize",
    "sensitivity": "sensitivity",
    "search": "search",
    "cast": "cast",
    "tune": "tune",
    "bench": "bench",
    "build": "build",
    "inspect": "inspect",
    "explain": "explain",
    "predict": "predict",
    "doctor": "doctor",
}


class Commands(click.Group):
    """Loads a verb's module when it is called, and suggests the nearest for a wrong word."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"deploy_tools.cli.{COMMANDS[name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f'no command is named "{args[0]}". {nearest(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploy-tools")
def cli() -> None:
    """From a trained ResNet checkpoint to INT8 artifacts, proved against the FP32 baseline.

    Start with: deploy-tools demo
    """


def entry() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(args: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        result: Any = cli.main(args, prog_name="deploy-tools", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        return _fail(error.format_message(), 2, _help_of(error))
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; what was finished is kept, nothing is half-written.", 130)
    except DeployToolsError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            return _fail(f"{error.filename or 'the output'}: {error.strerror}.", 8)
        return _bug()
    except Exception:
        return _bug()


def _fail(message: str, code: int, more: str = "") -> int:
    click.echo(f"deploy-tools: {message}", err=True)
    if more:
        click.echo(more, err=True)
    return code


def _help_of(error: click.UsageError) -> str:
    if error.ctx is None:
        return ""
    return f"See: {error.ctx.command_path} --help"


def _bug() -> int:
    traceback.print_exc()
    return _fail(f"this is a bug. Please report the lines above to {ISSUES}.", 1)

"""The command line: one command per stage, and `run`, `demo` and `verify` over all of them.

`holdfast.stages.table` lists the stages; `options.py` turns a stage's configuration into options;
`special.py` holds the commands that are not stages; `show.py` prints progress and results.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from holdfast.cli import special
from holdfast.stages.table import STAGES

app = typer.Typer(
    help="Keep a language model's safety alignment through fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class StageCommand(TyperCommand):
    """The command of a stage, which builds its options only when it is called.

    The options come from the stage's configuration, whose module `holdfast --help` need not import.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Build the options, then the context, as every command does."""
        from holdfast.cli.options import broken_rule, command, likely_flags

        stage = STAGES[str(self.name)]
        built = command(stage)
        self.params = built.params
        self.callback = built.callback
        self.epilog = built.epilog
        try:
            return super().make_context(*args, **kwargs)
        except typer.BadParameter as error:
            if rule := broken_rule(stage, error):
                error.message = rule
            raise
        except Exception as error:
            # The class of an unknown option is private to typer; its attributes are click's.
            if flags := likely_flags(stage, getattr(error, "option_name", "")):
                vars(error)["possibilities"] = flags
            raise


def _placeholder() -> None:
    """Stand in for a stage's function until `StageCommand` builds the command."""


for _name, _stage in STAGES.items():
    app.command(_name, cls=StageCommand, help=_stage.summary)(_placeholder)
app.add_typer(special.app)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show log messages.")] = False,
) -> None:
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


def main() -> None:
    """Run the command line; every error becomes one message and an exit code.

    Exit codes: 0 for success, 1 for a failure while running, 2 for a command, option or input that
    must be changed, 130 for an interruption.
    """
    from holdfast.errors import HoldfastError
    from holdfast.runtime import threads

    threads.settle()
    try:
        app(standalone_mode=True)
    except HoldfastError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{where}{error.strerror or error}; finished work is kept: fix this and rerun the "
            "same command",
            1,
        )


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error[/]", end=" ")
    console.print(message, markup=False)
    sys.exit(code)

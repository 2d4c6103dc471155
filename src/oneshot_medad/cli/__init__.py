"""The command line: ``oneshot-medad``."""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from oneshot_medad._names import printable
from oneshot_medad.cli import archive, calibrate, demo, detectors, predictions, pretrain, study

app = typer.Typer(
    help="One-shot medical anomaly detection. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from oneshot_medad import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


for command in (
    detectors.fit,
    predictions.predict,
    predictions.report,
    detectors.evaluate,
    detectors.info,
    detectors.push,
    demo.demo,
    detectors.download,
    calibrate.calibrate,
    study.study,
    pretrain.pretrain,
    archive.manifest,
    archive.archive,
):
    app.command()(command)


def main() -> None:
    """Run the command line; errors of this package and of the disk end it with one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names may hold what the screen's encoding cannot
            stream.reconfigure(errors="backslashreplace")

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if Path(filename).is_relative_to(Path(__file__).parents[1]):  # libraries underneath talk to their callers
            typer.secho(printable(f"Warning: {message}"), fg="yellow", err=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            app()
    except Exception as error:
        from oneshot_medad.errors import OneShotError  # takes a second, which --help need not wait for

        if not isinstance(error, (OneShotError, OSError)):
            raise
        typer.secho(printable(f"{type(error).__name__}: {error}"), fg="red", err=True)
        raise SystemExit(1) from error

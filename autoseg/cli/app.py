"""The table of commands. The order is the way of the data; importing this costs no torch, numpy or pydantic."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg import __version__
from autoseg.cli.benchmark import benchmark
from autoseg.cli.check import check
from autoseg.cli.check_plugin import check_plugin
from autoseg.cli.command import Command
from autoseg.cli.demo import demo
from autoseg.cli.doctor import doctor
from autoseg.cli.evaluate import evaluate
from autoseg.cli.export import export
from autoseg.cli.export_nnunet import export_nnunet
from autoseg.cli.find_best import find_best
from autoseg.cli.import_nnunet import import_nnunet
from autoseg.cli.list_plugins import list_plugins
from autoseg.cli.new import new
from autoseg.cli.plan_and_preprocess import plan_and_preprocess
from autoseg.cli.predict import predict
from autoseg.cli.pretrain import pretrain
from autoseg.cli.report import report
from autoseg.cli.train import train

COMMANDS = {
    "demo": demo,
    "check": check,
    "plan-and-preprocess": plan_and_preprocess,
    "train": train,
    "pretrain": pretrain,
    "find-best": find_best,
    "predict": predict,
    "evaluate": evaluate,
    "report": report,
    "benchmark": benchmark,
    "import-nnunet": import_nnunet,
    "export-nnunet": export_nnunet,
    "export": export,
    "list": list_plugins,
    "new": new,
    "check-plugin": check_plugin,
    "doctor": doctor,
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for name, function in COMMANDS.items():
    app.command(name, cls=Command)(function)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autoseg {__version__}")
        raise typer.Exit


@app.callback()
def autoseg(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From a folder of labelled medical images to a cross-validated segmentation ensemble.

    \b
    Example:
      autoseg demo
    """

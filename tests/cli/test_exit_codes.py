"""Errors become one message on stderr and an exit code."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from autoseg.cli import running
from autoseg.errors import CaseError, CasesFailed, Interrupted, UserError


@pytest.fixture
def failing(autoseg, monkeypatch):
    """Run `autoseg fail` with a command that raises `error`."""

    def call(error, *arguments):
        from autoseg.cli import app as table

        app = typer.Typer()

        @app.command()
        def fail() -> None:
            raise error

        @app.command()
        def other() -> None:
            pass

        monkeypatch.setattr(table, "app", app)
        return autoseg("fail", *arguments)

    return call


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("bad", where="a.json", mend="correct it"), 2, "error: a.json: bad\nTo mend it: correct it\n"),
        (
            CasesFailed([CaseError("c1", "reading", "x")]),
            1,
            "error: 1 case(s) failed; the others are complete:\n  case",
        ),
        (CaseError("c1", "reading", "x"), 1, "error: case c1, reading: x\n"),
        (Interrupted("checkpoint written"), 130, "interrupted: checkpoint written\n"),
        (FileNotFoundError(2, "No such file or directory", "x.nii"), 2, "error: x.nii: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "error: out: Permission denied\nTo mend it: choose"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\nTo mend it: free some"),
    ],
)
def test_expected_errors_are_one_message(failing, error, code, message):
    outcome = failing(error)
    assert outcome.code == code
    assert outcome.err.startswith(message)
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_keyboard_interrupt_is_130(failing):
    outcome = failing(KeyboardInterrupt())
    assert outcome.code == 130
    assert "interrupted; what was finished before is kept" in outcome.err


def test_unexpected_errors_keep_their_traceback_in_a_file(failing):
    outcome = failing(ZeroDivisionError("division by zero"))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ZeroDivisionError: division by zero\n")
    assert "Traceback" not in outcome.err
    file = Path(re.search(r"the traceback is in (\S+)", outcome.err).group(1))
    assert "in fail" in file.read_text()
    file.unlink()


def test_debug_shows_the_traceback(failing):
    outcome = failing(UserError("bad"), "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith("error: bad\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["train"], "Missing argument 'DATASET'"),
        (["train", "D", "2d", "--learning-rate", "1"], "No such option"),
        (["train", "D", "2d", "--time-budget", "soon"], "'soon' is not a time span"),
        (["predict", "-i", "a", "-o", "b"], "give either a model folder or a data set"),
        (["predict", "-i", "a", "-o", "b", "-d", "4"], "no selected models fit '4'"),
        (["predict", "-i", "a", "-o", "b", "-m", "none", "--tta-adapt", "more"], "can be entropy, got 'more'"),
        (["predict", "-i", "a", "-o", "b", "-m", "none", "--tta-steps", "5"], "add --tta-adapt entropy"),
        (["predict", "-i", "a", "-o", "b", "-m", "none"], "model.json: the file does not exist"),
        (["train", "D", "2d", "--set", "a"], "--set 'a' is not of the form"),
        (["plan-and-preprocess", "D", "--network-option", "a"], "--network-option 'a' is not of the form"),
        (["check", "none"], "no data set 'none'"),
        (["report", "none"], "none"),
        (["evaluate", "a", "b"], "a: the folder does not exist"),
        (["list", "things"], "things"),
    ],
)
def test_wrong_use_is_2_with_a_message(autoseg, arguments, message):
    outcome = autoseg(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_log_messages_go_to_stderr(autoseg, capsys):
    autoseg("--version")
    logging.getLogger("autoseg.x").info("reading")
    logging.getLogger("autoseg.x").debug("hidden")
    logging.getLogger("autoseg.x").warning("slow disk")
    logging.getLogger("other").info("hidden")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "reading\nwarning: slow disk\n")
    running.set_up_logging(debug=True)
    logging.getLogger("autoseg.x").debug("details")
    assert capsys.readouterr().err == "debug autoseg.x: details\n"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_leaves_with_130(tmp_path):
    code = """
import time
from autoseg.cli import evaluate, main
def wait(*arguments, **options):
    print("ready", flush=True)
    time.sleep(60)
evaluate.echo_scores = wait
import autoseg.evaluation
autoseg.evaluation.evaluate = wait
main(["evaluate", "a", "b"])
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_closed_pipe_is_no_error():
    line = f"{sys.executable} -m autoseg.cli list architectures | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("closed", "heard"), [(">&-", "stderr"), ("2>&-", "stdout"), (">&- 2>&-", "")])
def test_closed_outputs_are_no_defect(closed, heard, tmp_path):
    """Schedulers start commands so."""
    command = f"exec \"$0\" -c \"from autoseg.cli import main; main(['list', 'planners'])\" {closed}"
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0
    assert "defect" not in done.stdout + done.stderr
    assert ("nnunet" in done.stdout) == (heard == "stdout")

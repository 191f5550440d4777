"""`autoseg benchmark` as typed: one real campaign with processes of its own, what it costs, wrong use."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A workspace whose plans `tiny` any network with strides of two can take."""
    target = Workspace.open(tmp_path_factory.mktemp("benchmark"))
    shutil.copytree(tiny.raw, target.raw)
    shutil.copytree(tiny.preprocessed, target.preprocessed)
    return target


def line(place, *more):
    return ("benchmark", NAME, "--architectures", "plain_unet", "unet", "--plans", "tiny", "--budget", "2", "--seeds",
            "1", "--folds", "0", "--device", "cpu", "--workspace", place.root, *more)  # fmt: skip


def test_a_dry_run_says_which_times_are_assumed(autoseg, place):
    told = autoseg("benchmark", NAME, "--architectures", "plain_unet", "unet", "--budget", "2", "--device", "cpu",
                   "--workspace", place.root, "--dry-run")  # fmt: skip
    assert told.code == 0, told.err
    assert "times `assumed`: what plans leave for a step, or the operations of the network's smallest size" in told.out
    assert "assumed" not in autoseg(*line(place, "--dry-run")).out


def test_a_campaign_from_the_first_process_to_the_page(autoseg, place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = autoseg(*line(place, "--dry-run"))
    assert told.code == 0, told.err
    assert "2 runs left" in told.out
    assert re.search(r"plain_unet +1 +0 +2 ", told.out)  # runs, finished, steps of this method
    assert "processor time" in told.out
    assert "weights and optimiser states" in told.out
    assert not (place.root / "benchmarks").exists()

    done = autoseg(*line(place, "--jobs", "2"))
    assert done.code == 0, done.err
    folder = place.root / "benchmarks" / "equal-2steps"
    assert {file.name for file in folder.iterdir()} >= {"benchmark.json", "results.csv", "index.html"}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "run"]
    assert [(row["status"], row["steps"]) for row in rows] == [("finished", "2")] * 2
    for row in rows:
        for column in ("parameters", "step_flops", "forward_flops", "step_seconds", "train_cpu_seconds",
                       "inference_seconds_per_case", "peak_gib_of_training", "peak_gib_of_run", "cases"):  # fmt: skip
            assert float(row[column]) > 0, column
        assert float(row["forward_flops"]) < float(row["step_flops"])
    assert list(folder.glob("runs/*/*/fold_0/validation/*.nii.gz"))
    assert not list(folder.rglob("*.safetensors"))  # unless --keep-weights
    assert not list((place.root / "results").glob("*"))  # `find-best` knows nothing of these runs
    assert "No winner" in done.out or "single run" in done.out

    written = {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")}
    again = autoseg(*line(place, "--json"))
    assert again.code == 0, again.err
    content = json.loads(again.out)
    assert {run["status"] for run in content["runs"].values()} == {"finished"}
    assert len(content["verdict"]["datasets"][0]["comparisons"]) == 1
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")} == written

    told = json.loads(autoseg(*line(place, "--dry-run", "--json")).out)
    assert (told["runs"], told["finished"], told["datasets"][0]["steps"]) == (2, 2, 2)
    assert told["datasets"][0]["rule"] == "measured steps"
    assert told["hours"] == 0
    check_table_of_architectures(folder, place, rows)


def check_table_of_architectures(folder, place, rows):
    """What benchmarks/architecture_table.py makes of the tables that the referee writes."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "architecture_table.py"
    said = subprocess.run([sys.executable, script, folder, "--deep", NAME], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    header, _, *lines, _, told = said.stdout.splitlines()
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    cells = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}
    assert {len(each) for each in cells.values()} == {len(columns)}
    for row in rows:
        third = dict(zip(columns[2:9], cells[row["architecture"]][2:9], strict=True))
        assert third["steps"] == "2"
        assert third["common"] == f"{float(row['dice']):.3f}"
        assert third["own"] == "-"
        assert float(third["GFLOP a step"]) == pytest.approx(float(row["step_flops"]) / 1e9, abs=0.06)
        assert float(third["s a step"]) == pytest.approx(float(row["train_cpu_seconds"]) / 2, abs=0.006)
        assert float(third["traced MiB"]) > 1
        assert set(cells[row["architecture"]][9:]) == {"-"}  # no 2D data
    assert cells["plain_unet"][1] == "31.20 / 31.20"
    assert told.startswith(f"{len(rows)} runs, ")


def test_a_run_that_fails_is_listed_and_the_code_is_1(autoseg, place, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "broken.py").write_text(
        '"""A network that cannot run."""\n'
        "from autoseg import Architecture, register\n\n\n"
        '@register.architecture("broken")\n'
        "class Broken(Architecture):\n"
        '    """For a test."""\n\n'
        "    def __init__(self, spec):\n"
        '        raise RuntimeError("no such thing")\n'
    )
    done = autoseg(
        "benchmark", NAME, "--architectures", tmp_path / "broken.py", "--plans", "tiny", "--budget", "2", "--seeds",
        "1", "--name", "broken", "--device", "cpu", "--workspace", place.root,
    )  # fmt: skip
    assert done.code == 1
    assert "failed: " in done.err
    assert "no such thing" in done.err
    assert "no such thing" in (place.root / "benchmarks" / "broken" / "index.html").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_ctrl_c_stops_the_child_and_leaves_a_page(place):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    arguments = [str(part) for part in line(place, "--name", "stopped")]
    arguments[arguments.index("--budget") + 1] = "100000"
    arguments.remove("unet")
    process = subprocess.Popen([sys.executable, "-m", "autoseg.cli", *arguments], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    folder = place.root / "benchmarks" / "stopped"
    while not list(folder.glob("work/*.request.json")):  # a child is at work
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "interrupted: stopped by SIGINT; 1 " in said
    assert "under way" in said
    assert "(s)" not in said.partition("interrupted")[2]
    assert f"To go on:\n  autoseg benchmark {NAME} --architectures plain_unet --plans tiny --budget 100000" in said
    assert (folder / "index.html").is_file()
    assert not list(folder.glob("work/*.request.json"))  # no child is left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--architectures", "plain_une"), "did you mean plain_unet"),
        ((), "there is nothing to compare"),
        (("--architectures", "plain_unet", "--equal", "money"), "--equal 'money'"),
        (("--architectures", "plain_unet", "--budget", "5h"), "--budget '5h'"),
        (("--architectures", "plain_unet", "--name", "../up"), "--name"),
        (("--architectures", "plain_unet", "--plans", "none"), "there are no plans 'none'"),
    ],
)
def test_wrong_use(autoseg, place, arguments, message):
    said = autoseg("benchmark", NAME, *arguments, "--workspace", place.root)
    assert said.code == 2
    assert message in said.err
    assert "To mend it" in said.err


def test_dry_run_of_what_is_not_planned_yet(autoseg, place):
    told = autoseg("benchmark", NAME, "--architectures", "plain_unet", "meddinov3", "--equal", "time", "--budget",
                   "60s", "--folds", "cv", "--workspace", place.root, "--dry-run", "--json")  # fmt: skip
    assert told.code == 0, told.err
    (one,) = json.loads(told.out)["datasets"]
    assert one["runs"] == 3 * 5  # the images are 3D, one network is 2D only
    assert one["cases"] == 6
    assert one["seconds"] > 15 * 60
    assert one["rule"] == "the budget"

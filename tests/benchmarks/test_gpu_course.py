"""The course of the GPU benchmark: parts that fail, hang or come too late leave the others alone."""

import contextlib
import json
import os
import select
import sys
import time
from types import SimpleNamespace

import gpu
import pytest
from gpu_parts import checkout
from gpu_parts.course import Course
from gpu_parts.parts import PARTS, Part, chosen

CHILD = """
import json, os, subprocess, sys, time
name, work, answer = sys.argv[1:4]
if name == "slow":
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(answer, "w").write(json.dumps({"grandchild": grandchild.pid}))
    time.sleep(600)
if name == "crash":
    print("about to crash")
    os.abort()
if name == "wrong":
    open(answer, "w").write(json.dumps({"failed": "ZeroDivisionError: division by zero"}))
    sys.exit(1)
open(answer, "w").write(json.dumps({"began": time.monotonic(), "complete": True}))
"""


@pytest.fixture
def course(tmp_path):
    """Return a course whose parts do as their names say, and the names that it has told so far."""
    package = tmp_path / "site" / "gpu_parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "child.py").write_text(CHILD)
    told = []
    one = Course(
        tmp_path, tmp_path / "site", rehearse=False, end=time.monotonic() + 100, told=lambda name, _: told.append(name)
    )
    return one, told


def _part(name, **fields):
    return Part(name, "no module", 30, 1, **fields)


def test_what_fails_leaves_the_others_alone(course):
    one, told = course
    found = one.run([_part("crash"), _part("wrong"), _part("good"), _part("later", after=("wrong",))])
    assert found["crash"]["failed"] == "the process ended with code -6"
    assert found["crash"]["printed"] == "about to crash\n"
    assert found["wrong"]["failed"] == "ZeroDivisionError: division by zero"
    assert found["good"]["complete"]
    assert found["later"] == {"left_out": "there is no wrong"}
    assert told == ["crash", "wrong", "good", "later"]


def clock_that_jumps(answer):
    """Return a module `time` whose monotonic() goes from 0 to 4.2 once a file holds a whole answer."""

    def monotonic():
        with contextlib.suppress(OSError, json.JSONDecodeError):
            json.loads(answer.read_text())
            return 4.2
        return 0.0

    return SimpleNamespace(monotonic=monotonic, sleep=time.sleep)


def ends(process):
    """Wait for the end of a process that was killed; it may be over, or a zombie that nobody waits for."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process)
        try:
            return bool(select.select([handle], [], [], 60)[0])
        finally:
            os.close(handle)
    return True


def test_what_hangs_is_stopped_with_all_that_it_started_and_its_answer_kept(course, tmp_path, monkeypatch):
    one, _ = course
    for module in ("course", "processes"):
        monkeypatch.setattr(f"gpu_parts.{module}.time", clock_that_jumps(tmp_path / "slow.json"))
    one._end = 4
    found = one.run([_part("slow"), Part("late", "no module", 30, least=20)])
    assert found["slow"]["stopped"] == "after 4 s"
    assert ends(found["slow"]["grandchild"])
    assert "left, it needs 20" in found["late"]["left_out"]


def test_what_runs_ahead_runs_first_and_in_order_of_need(course):
    one, told = course
    parts = [_part("second", ahead=True, after=("first",)), _part("first", ahead=True), _part("timed")]
    found = one.run(parts)
    assert told == ["first", "second", "timed"]
    assert found["first"]["began"] < found["second"]["began"] < found["timed"]["began"]


def test_parts_are_chosen_with_what_they_need():
    def names(*only, compiles=True):
        return [part.name for part in chosen(only, compiles=compiles)]

    assert names("nnunet step plain") == ["compile nnunet step plain", "nnunet step plain"]
    assert names("autoseg step plain") == ["workspace", "compile autoseg step plain", "autoseg step plain"]
    assert names("autoseg step plain", compiles=False) == ["workspace", "autoseg step plain"]
    assert names() == [part.name for part in PARTS]


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 3
    assert capsys.readouterr().out == "no GPU: nothing measured\n"
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["parts"] == {}
    assert {row["value"] for row in content["verdicts"].values()} == {None}


def test_missing_packages_are_listed(monkeypatch):
    monkeypatch.setattr(checkout, "PACKAGES", {"json": "json", "no_such": "no-such", "no_other": "no-other"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    listed = ["these packages cannot be imported:", "  no-such: No module named 'no_such'",
              "  no-other: No module named 'no_other'"]  # fmt: skip
    assert str(stopped.value).splitlines() == listed


def test_a_checkout_is_laid_out_as_it_would_be_installed(tmp_path):
    site = checkout.lay_out(tmp_path / "site")
    for file in ("__init__.py", "trainers/supervised.py", "architectures/blocks/unet.py", "planners/nnunet.py"):
        assert (site / "autoseg" / file).is_file()
    assert not list(site.rglob("__pycache__"))


def test_results_are_written_with_verdicts(tmp_path):
    gpu._write(tmp_path / "gpu.json", {"card": {"bf16_flops": 1.0}}, rehearsed=False)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["parts"] == {"card": {"bf16_flops": 1.0}}
    assert "CT: windows, share of the card's bf16 rate" in content["verdicts"]
    assert content["rehearsal"] is False
    assert content["date"] >= "2026-11-23"

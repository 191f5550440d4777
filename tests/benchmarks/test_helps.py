"""Every script of benchmarks/ explains itself; none begins to measure when it is asked for help."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))
MODULES = ("small_pipeline.py", "ablation_controls.py")  # what other scripts run, no script itself


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each.name not in MODULES], ids=lambda each: each.stem)
def test_a_script_reads_its_arguments(script):
    assert "parse_args(" in script.read_text(encoding="utf-8")


def test_help_of_the_selective_scan_measures_nothing():
    script = next(each for each in SCRIPTS if each.name == "selective_scan.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("usage: selective_scan.py")
    assert "loop s" not in done.stdout

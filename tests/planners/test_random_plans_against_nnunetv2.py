"""Plans for random fingerprints against nnunetv2's own planners, where AUTOSEG_TEST_NNUNET_PYTHON has it.

`benchmarks/record_nnunet_plans.py` draws the fingerprints and asks nnunetv2; about one second each.
AUTOSEG_TEST_NNUNET_PLANS sets their number.
"""

import json
import os
import subprocess

import pytest
import test_nnunet_planners as recorded


@pytest.mark.timeout(3600)
def test_random_fingerprints(repository, tmp_path):
    python = os.environ.get("AUTOSEG_TEST_NNUNET_PYTHON")
    if not python:
        pytest.skip("AUTOSEG_TEST_NNUNET_PYTHON does not name a Python that has nnunetv2")
    count = os.environ.get("AUTOSEG_TEST_NNUNET_PLANS", "300")
    script = repository / "benchmarks" / "record_nnunet_plans.py"
    command = [python, script, "--count", count, "--seed", "1", "--output", tmp_path / "plans.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    entries = json.loads((tmp_path / "plans.json").read_text())
    assert len(entries) == int(count)
    for entry in entries:
        recorded.test_equal_to_nnunetv2(entry)

"""What the stages before training import: workers are processes, and every module in them costs time and memory."""

import subprocess
import sys

import pytest

STAGES = ("autoseg.fingerprinting", "autoseg.planning", "autoseg.preprocessing", "autoseg.evaluation", "autoseg.raw")


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (STAGES, {"torch", "skimage", "SimpleITK", "lightning_fabric"}),
        (("autoseg.training.starting",), {"lightning_fabric", "torch._dynamo", "sympy", "skimage", "scipy.ndimage"}),
        (("autoseg.inference", "autoseg.interop"), {"lightning_fabric", "torch._dynamo", "sympy", "skimage"}),
    ],
    ids=["before training", "what training refuses", "prediction"],
)
def test_nothing_heavy_is_imported(modules, heavy):
    code = f"import {', '.join(modules)}, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_training_is_loaded_on_first_use():
    import autoseg.training

    assert set(autoseg.training.__all__) <= set(dir(autoseg.training))
    for name in autoseg.training.__all__:
        assert getattr(autoseg.training, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = autoseg.training.nothing

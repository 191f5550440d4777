"""What a training step costs: counted against a network whose operations are known, timed on the processor's clock."""

import math
import time

import pytest

from autoseg.errors import UserError
from autoseg.training.costs import measure_step

NAME = "Dataset004_Hippocampus"
POINTWISE = '''
"""One 1x1 convolution: every voxel by itself."""
from torch import nn

from autoseg import Architecture, register


@register.architecture("pointwise")
class Pointwise(Architecture):
    """For tests."""

    def __init__(self, spec):
        super().__init__(spec)
        self.head = (nn.Conv2d, nn.Conv3d)[spec.dims - 2](spec.in_channels, spec.num_outputs, 1)

    def encode(self, x):
        return [x]

    def decode(self, features):
        return self.head(features[0])
'''


def measured(scratch, **options):
    options = {"settings": {"deep_supervision": False}, "patience": 0.5, **options}
    return measure_step(NAME, "2d", plans_name="tiny", device="cpu", workspace=scratch, **options)


def test_operations_and_weights_of_a_known_network(scratch, tmp_path):
    (tmp_path / "pointwise.py").write_text(POINTWISE)
    costs = measured(scratch, architecture=str(tmp_path / "pointwise.py"))
    pixels, outputs = 32 * 24, 3
    assert costs.parameters == outputs + outputs
    assert costs.forward_flops == 2 * pixels * outputs
    # two patches forwards; backwards only the gradient of the weights, which costs as much
    assert costs.step_flops == 2 * costs.samples * costs.forward_flops
    assert costs.samples == 2


def test_steps_are_timed_and_nothing_is_written(scratch):
    costs = measured(scratch)
    assert costs.clock == "cpu"
    assert len(costs.all_seconds) >= 2
    position = (len(costs.all_seconds) - 1) / 4  # of the lower quartile; several steps may take one time, rounded
    ordered = sorted(costs.all_seconds)
    assert ordered[math.floor(position)] - 1e-5 <= costs.seconds <= ordered[math.ceil(position)] + 1e-5
    assert costs.step_flops > 2 * costs.samples * costs.forward_flops
    assert costs.peak_bytes > 50 * 2**20
    assert not scratch.results.exists()


def test_a_trainer_that_does_more_costs_more(scratch):
    plain = measured(scratch, settings={"deep_supervision": False, "accumulate": 2})
    assert plain.samples == 4
    assert plain.step_flops == pytest.approx(2 * measured(scratch).step_flops)


def test_time_that_others_take_is_not_counted(scratch, monkeypatch):
    """Waiting is no processor time: a step that sleeps costs what it costs awake."""
    from autoseg.training.trainer import Trainer

    awake = measured(scratch).seconds
    real = Trainer.training_step

    def sleepy(self, batches, progress):
        time.sleep(0.05)
        yield from real(self, batches, progress)

    monkeypatch.setattr(Trainer, "training_step", sleepy)
    assert measured(scratch).seconds < awake + 0.04


@pytest.mark.parametrize(("patience", "steps"), [(0.4, 3), (60.0, 6)])
def test_slow_steps_have_a_short_warm_up(scratch, monkeypatch, patience, steps):
    """Where one takes half of the patience, one to warm up and two that count; else four and these."""
    from autoseg.training import costs
    from autoseg.training.trainer import Trainer

    made, real = [], Trainer.training_step

    def slow(self, batches, progress):
        made.append(self.step)
        time.sleep(0.25)
        yield from real(self, batches, progress)

    monkeypatch.setattr(Trainer, "training_step", slow)
    monkeypatch.setattr(costs, "STEPS", 2 if patience > 1 else costs.STEPS)  # patience alone ends the impatient one
    monkeypatch.setattr(costs, "_counted", lambda run: (None, None))
    found = measured(scratch, patience=patience)
    assert len(made) == steps
    assert len(found.all_seconds) == 2


def test_a_pretraining_method_has_no_costs_here(scratch):
    with pytest.raises(UserError, match="autoseg pretrain"):
        measured(scratch, trainer="masked_autoencoder", settings={})

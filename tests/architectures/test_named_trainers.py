"""The trainers that architectures name are there and score something."""

import pytest

from autoseg import plugins

NAMED = {"ms_dual_guided": "guided_attention", "mpu_net": "tversky_bce"}


@pytest.mark.parametrize("found", plugins.list_plugins("architecture"), ids=lambda found: found.name)
def test_the_trainer_that_an_architecture_names(found):
    name = plugins.load("architecture", found.name).trainer
    assert name == NAMED.get(found.name)
    if name is not None:
        assert plugins.load("trainer", name).needs_labels

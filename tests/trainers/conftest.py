"""Trainers on the tiny real workspace: whole runs, and set-up trainers without the loop."""

import pytest

from autoseg import plugins
from autoseg.raw import make_splits
from autoseg.training import Trainer, pretrain, train
from autoseg.training.starting import _Training

NAME = "Dataset004_Hippocampus"


@pytest.fixture
def run(scratch):
    """Return a function that trains `trainer` and returns the run folder."""

    def carry_out(trainer, configuration="3d_fullres", *, labelled=2, workspace=scratch, **options):
        options = {"plans_name": "tiny", "device": "cpu", "deterministic": True, "workers": 1} | options
        if not plugins.load("trainer", trainer).needs_labels:
            return pretrain(NAME, configuration, trainer=trainer, workspace=workspace, **options)[0]
        return train(NAME, configuration, "0", trainer=trainer, labelled=labelled, workspace=workspace, **options)[0]

    return carry_out


@pytest.fixture
def build(scratch):
    """Return a function that sets a trainer up on fold 0, on the CPU, without optimisers and loop."""

    def make(trainer, configuration="3d_fullres", *, labelled=2, architecture=None, **settings) -> Trainer:
        training = _Training(
            dataset=NAME, configuration=configuration, folds="0", trainer=trainer, plans_name="tiny",
            architecture=architecture, pretrained=None, settings=settings, recipe=None, labelled=labelled,
            time_budget=None, device="cpu", processes=1, seed=0, deterministic=True, restart=False, workers=1,
            workspace=scratch, name=None,
        )  # fmt: skip
        splits = make_splits(training.dataset, seed=12345)
        context = training._context("0", splits, training._open_store(), None)
        built = training.trainer_class(context, training.settings)
        built.prepare()
        return built

    return make

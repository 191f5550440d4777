"""The built-in supervised trainers in two processes, which share gradients: some leave parameters without any."""

from dataclasses import replace

import pytest
import torch

from autoseg import plugins
from autoseg.storage import read_json
from autoseg.training.run import _Process, make_fabric
from autoseg.training.starting import _Training
from autoseg.worker_life import modules_of_this_process

NAME = "Dataset004_Hippocampus"
ARCHITECTURES = {"guided_attention": "ms_dual_guided"}  # of trainers that concern no other
SETTINGS = {"steps": "3", "batch_size": "4", "mirror": "False", "observed_cases": "1"}


def supervised_trainers():
    """Return the names of the trainers that learn from labels, each after those that it builds on."""
    loaded = {found.name: plugins.load("trainer", found.name) for found in plugins.list_plugins("trainer")}
    names = [name for name, trainer in loaded.items() if trainer.needs_labels]
    return sorted(names, key=lambda name: (len(loaded[name].builds_on), name))


class Walk:
    """The runs that both processes carry out one after the other: starting processes takes longer than a run."""

    def __init__(self, runs):
        self.runs = runs

    def __call__(self, fabric):
        for each in self.runs:
            each(fabric)


@pytest.fixture
def started(scratch):
    """Return a function that makes the run of a trainer on fold 0; it travels to other processes."""

    def make(trainer):
        training = _Training(
            dataset=NAME, configuration="2d", folds="0", trainer=trainer, plans_name="tiny",
            architecture=ARCHITECTURES.get(trainer), pretrained=None, settings=SETTINGS, recipe=None, labelled=2,
            time_budget=None, device="cpu", processes=2, seed=0, deterministic=True, restart=False, workers=1,
            workspace=scratch, name=None,
        )  # fmt: skip
        (context,) = training.contexts()
        context.folder.mkdir(parents=True)
        context = replace(context, store=None)
        return _Process(context, training._open_store().folder, training.settings, training._options(None))

    return make


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_every_supervised_trainer_trains_in_two_processes(started):
    runs = [started(name) for name in supervised_trainers()]
    assert len(runs) > 6
    with modules_of_this_process():
        make_fabric(torch.device("cpu"), "fp32", 2).launch(Walk(runs))
    for each in runs:
        record = read_json(each.context.folder / "run.json")
        assert (record["status"], record["steps_done"], record["processes"]) == ("finished", 3, 2)

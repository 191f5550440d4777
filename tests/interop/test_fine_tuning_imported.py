"""Fine-tuning a model of nnU-Net on another data set, with other channels and labels."""

import json

import nibabel as nib
import pytest
import torch
from safetensors.torch import load_file

from autoseg.fingerprinting import fingerprint
from autoseg.planning import Planner, Resources
from autoseg.plugins import build_network
from autoseg.preprocessing import preprocess
from autoseg.raw import open_dataset
from autoseg.storage import read_json, write_json
from autoseg.training import train
from autoseg.training.log import read_events
from autoseg.training.pretrained import load_pretrained
from autoseg.workspace import Workspace

NAME = "Dataset110_BrainTumourMR"
WEIGHTS = "members/3d_fullres/fold_0.safetensors"


class Small(Planner):
    """nnU-Net's rules with the width of the imported network."""

    base_features: int = 8


@pytest.fixture(scope="module")
def brain(shared, tmp_path_factory):
    """A workspace of the middle of real two-channel images with four labels."""
    source, workspace = shared / "data" / NAME, Workspace.open(tmp_path_factory.mktemp("workspace"))
    raw = workspace.raw / NAME
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
        for file in sorted((source / folder).glob("*.nii.gz")):
            image = nib.load(file)
            nib.save(image.slicer[100:148, 100:148, 60:108], raw / folder / file.name)
    write_json(raw / "dataset.json", json.loads((source / "dataset.json").read_text()))
    dataset = open_dataset(raw, workspace)
    planner = Small(name="small", plans_name="small", wanted=("3d_fullres",))
    plans = planner.plan(fingerprint(dataset, workspace, workers=1), Resources("cpu", 8.0), dataset)
    plans.write(workspace.plans_file(NAME, "small"))
    preprocess(dataset, plans, workspace, workers=1)
    return workspace, plans.configuration("3d_fullres")


def test_tensors_are_adapted_by_name_and_shape(brain, hippocampus):
    _, configuration = brain
    network = build_network(configuration.architecture, configuration.network)
    table = {row.name: row for row in load_pretrained(network, hippocampus)}
    old, new = load_file(hippocampus / WEIGHTS), network.state_dict()
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    heads = {name for name in new if "seg_layers" in name}
    assert {name for name, row in table.items() if row.status == "adapted"} == {stem}
    assert {name for name, row in table.items() if row.status == "fresh"} == heads
    assert table[stem].reason == "(8, 1, 3, 3, 3) -> (8, 2, 3, 3, 3)"
    loaded = [name for name, row in table.items() if row.status == "loaded"]
    assert len(loaded) == len(old) - len(heads) - 1
    assert all(torch.equal(new[name], old[name]) for name in loaded)
    torch.testing.assert_close(new[stem][:, :1], old[stem] / 2)


def test_training_starts_from_it_and_tells_the_table(brain, hippocampus):
    workspace, configuration = brain
    assert (configuration.network.in_channels, configuration.network.num_outputs) == (2, 5)
    [folder] = train(
        NAME, "3d_fullres", "0", plans_name="small", pretrained=hippocampus, settings={"steps": 2, "batch_size": 2},
        device="cpu", workers=1, workspace=workspace,
    )  # fmt: skip
    assert read_json(folder / "run.json")["status"] == "finished"
    [note] = [event["text"] for event in read_events(folder / "log.jsonl") if "tensors loaded" in event.get("text", "")]
    assert "1 tensors adapted, 6 tensors fresh" in note
    assert "adapted  encoder.stages.0.0.convs.0.conv.weight  (8, 1, 3, 3, 3) -> (8, 2, 3, 3, 3)" in note
    tuned, old = load_file(folder / "weights.safetensors"), load_file(hippocampus / WEIGHTS)
    name = "encoder.stages.3.0.convs.0.conv.weight"
    assert not torch.equal(tuned[name], old[name])
    together = torch.stack([tuned[name].flatten(), old[name].flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.9  # two steps away from where it began

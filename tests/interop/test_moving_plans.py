"""The plans of an imported model for another data set: its weights then fit, and training starts from them."""

import numpy as np
import pytest
import torch
from nnunet_folders import configuration, description, plans, write_results
from safetensors.torch import load_file

from autoseg.errors import UserError
from autoseg.fingerprinting import fingerprint
from autoseg.interop import import_nnunet, move_plans
from autoseg.model_folder import read_member_plans, read_model
from autoseg.plans import Plans
from autoseg.plugins import build_network
from autoseg.preprocessing import preprocess
from autoseg.raw import open_dataset
from autoseg.storage import read_json
from autoseg.training import train
from autoseg.training.log import read_events
from autoseg.training.pretrained import load_pretrained
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"


@pytest.fixture
def here(tiny, tmp_path):
    """The raw data in a workspace of their own, with a fingerprint."""
    workspace = Workspace(
        raw=tiny.raw, preprocessed=tmp_path / "preprocessed", results=tmp_path / "results", root=tmp_path
    )
    dataset = open_dataset(NAME, workspace)
    return workspace, dataset, fingerprint(dataset, workspace, workers=1)


def test_the_network_is_the_models_and_the_data_are_the_data_sets(hippocampus, here):
    workspace, dataset, found = here
    moved = move_plans(hippocampus, dataset, found, workspace, "moved")
    assert Plans.read(workspace.plans_file(NAME, "moved")) == moved
    [member] = read_model(hippocampus).members
    old, new = read_member_plans(hippocampus, member).configuration("3d_fullres"), moved.configuration("3d_fullres")
    for field in ("spacing", "patch_size", "batch_size", "architecture", "network"):  # one channel, two labels in both
        assert getattr(new, field) == getattr(old, field), field
    assert new.data_identifier == "moved_3d_fullres"
    assert (moved.intensities, moved.channel_names) == (found.intensities, found.channel_names)
    sizes = np.median(found.shapes_after_crop, 0)  # its spacing is 1 mm throughout
    assert new.spacing == (1.0, 1.0, 1.0)
    assert new.median_shape == tuple(sizes)


def test_training_starts_from_the_weights(hippocampus, here):
    workspace, dataset, found = here
    moved = move_plans(hippocampus, dataset, found, workspace, "moved")
    preprocess(dataset, moved, workspace, workers=1)
    [folder] = train(
        NAME, "3d_fullres", "0", plans_name="moved", pretrained=hippocampus, settings={"steps": 1, "batch_size": 1},
        device="cpu", workers=1, workspace=workspace,
    )  # fmt: skip
    assert read_json(folder / "run.json")["status"] == "finished"
    [note] = [event["text"] for event in read_events(folder / "log.jsonl") if "tensors loaded" in event.get("text", "")]
    assert note.endswith("0 tensors adapted, 0 tensors fresh")


def test_other_channels_labels_and_axes(here, tmp_path):
    """A cascade of two channels and three labels, with transposed axes and anisotropic spacing, on the hippocampus."""
    workspace, dataset, found = here
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    full = configuration(channels=2, spacing=[2.0, 1.0, 0.5], normalization_schemes=["CTNormalization"] * 2)
    low = {"inherits_from": "full", "data_identifier": "low", "next_stage": "cascade", "spacing": [4.0, 2.0, 1.0]}
    theirs = plans(
        {"full": full, "low": low, "cascade": {"inherits_from": "full", "previous_stage": "low"}},
        channels=2, transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2],
    )  # fmt: skip
    content = description(labels, channels=("CT", "CT"))
    write_results(tmp_path / "r", theirs, content, "low", inputs=2, outputs=4, entry=full["architecture"])
    folder, _ = write_results(
        tmp_path / "r", theirs, content, "cascade", inputs=5, outputs=4, entry=full["architecture"]
    )
    model = import_nnunet(folder, tmp_path / "model")
    moved = move_plans(model, dataset, found, workspace, "moved")
    new, below = moved.configuration("cascade"), moved.configuration("low")
    assert (new.network.in_channels, new.network.num_outputs) == (1 + 2, 3)
    assert (below.network.in_channels, below.network.num_outputs) == (1, 3)
    assert (new.normalization, new.use_mask) == (("zscore",), (False,))
    assert (new.data_identifier, below.data_identifier) == ("moved_cascade", "moved_low")
    assert moved.transpose_forward == (1, 0, 2)
    z, y, x = np.transpose(found.shapes_after_crop)  # at 1 mm
    wanted = [np.median(np.round(size)) for size in (y / 2, z / 1, x / 0.5)]
    assert new.median_shape == tuple(wanted)
    network = build_network(below.architecture, below.network)
    rows = {row.name: row.status for row in load_pretrained(network, model, labels=dataset.labels.names)}
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    assert {name for name, status in rows.items() if status == "adapted"} == {stem}
    assert {name for name, status in rows.items() if status == "fresh"} == {n for n in rows if "seg_layers" in n}
    old = load_file(model / "members" / "cascade" / "fold_0.safetensors")  # of the ensemble
    torch.testing.assert_close(network.state_dict()[stem], old[stem].sum(1, keepdim=True))


def test_names_that_are_paths_are_refused(hippocampus, here):
    workspace, dataset, found = here
    with pytest.raises(UserError, match=r"field plans_name is '\.\./moved'"):
        move_plans(hippocampus, dataset, found, workspace, "../moved")

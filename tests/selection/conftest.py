"""A small data set with preprocessed stores and finished runs of pointwise networks, whose mistakes are known."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autoseg.evaluation import evaluate_case, summarize, write_summary
from autoseg.inference import logits_to_label_map, predict_preprocessed, previous_stage_label
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans
from autoseg.plugins import build_network
from autoseg.preprocessing import preprocess
from autoseg.raw import Geometry, open_dataset, read_label, write_label
from autoseg.storage import write_json
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

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


class Lab:
    """Makes data and runs in one workspace."""

    name = "Dataset777_Blobs"

    def __init__(self, root):
        self.workspace = Workspace.open(root / "workspace")
        folder = self.workspace.root / "architectures"
        folder.mkdir(parents=True)
        (folder / "pointwise.py").write_text(POINTWISE)
        self._raw()
        self.dataset = open_dataset(self.name, self.workspace)
        self.plans = self._plans()
        preprocess(self.dataset, self.plans, self.workspace, workers=1)

    def _raw(self):
        folder = self.workspace.raw / self.name
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        description = {
            "name": "Blobs", "channel_names": {"0": "noNorm"}, "labels": {"background": 0, "outer": 1, "inner": 2},
            "numTraining": 4, "file_ending": ".nii.gz",
        }  # fmt: skip
        (folder / "dataset.json").write_text(json.dumps(description))
        for index in range(4):
            random = np.random.default_rng(index)
            label = np.zeros((6, 14, 12), np.uint8)
            label[1:5, 2:11, 2:9] = 1
            label[2:4, 4:8, 4:7] = 2
            image = label + random.normal(0, 0.22, label.shape)
            image[0, 0, 0] = 1.0  # a false island
            geometry = Geometry(
                spacing=(2.0, 1.0, 1.0), size=label.shape, origin=(0.0, 0.0, 0.0),
                direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1), dims=3, source=folder,
            )  # fmt: skip
            write_label(folder / "labelsTr" / f"case_{index}.nii.gz", label, geometry)
            write_image(folder / "imagesTr" / f"case_{index}_0000.nii.gz", image, geometry)

    def _plans(self):
        def configuration(name, dims, channels=1, **more):
            network = NetworkSpec(
                dims=dims, in_channels=channels, num_outputs=3, patch_size=(6, 14, 12)[3 - dims :],
                strides=((1,) * dims,), kernel_sizes=((1,) * dims,), features=(4,), blocks_encoder=(1,),
                blocks_decoder=(),
            )  # fmt: skip
            return Configuration(
                name=name, dims=dims, spacing=(2.0, 1.0, 1.0)[3 - dims :], median_shape=(6.0, 14.0, 12.0)[3 - dims :],
                patch_size=network.patch_size, batch_size=2, batch_dice=False, normalization=("none",),
                use_mask=(False,), data_identifier=f"store_{dims}d", architecture="pointwise", network=network, **more,
            )  # fmt: skip

        intensities = ChannelIntensities(mean=1, median=1, std=1, min=0, max=3, percentile_00_5=0, percentile_99_5=3)
        configurations = [
            configuration("2d", 2), configuration("3d_fullres", 3),
            configuration("3d_lowres", 3, next_stage="3d_cascade_fullres"),
            configuration("3d_cascade_fullres", 3, channels=3, previous_stage="3d_lowres"),
        ]  # fmt: skip
        plans = Plans(
            dataset_name=self.name, plans_name="p", planner="nnunet", transpose_forward=(0, 1, 2),
            transpose_backward=(0, 1, 2), original_median_spacing=(2, 1, 1), original_median_shape=(6, 14, 12),
            intensities=(intensities,), channel_names=("noNorm",), configurations={c.name: c for c in configurations},
        )  # fmt: skip
        plans.write(self.workspace.plans_file(self.name, "p"))
        return plans

    def network(self, configuration, shift, sharpness=1.0):
        """Return a network that expects the classes at intensities 0, 1, 2, all moved by `shift`."""
        network = build_network("pointwise", configuration.network, self.workspace.root)
        centres = torch.arange(3.0) + shift
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.weight[:, 0] = (2 * sharpness * centres).reshape((3,) + (1,) * configuration.dims)
            network.head.bias.copy_(-sharpness * centres**2)
        return network.eval()

    def run(self, name, fold, cases, shift, *, trainer="t", status="finished", previous=None, sharpness=1.0):
        """Write a run folder as training does."""
        configuration = self.plans.configuration(name)
        folder = self.workspace.run_folder(self.name, trainer, "p", name, fold)
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        network = self.network(configuration, shift, sharpness)
        save_file(network.state_dict(), folder / "weights.safetensors")
        self.plans.write(folder / "plans.json")
        store = CaseStore(self.workspace.store_folder(self.name, configuration.data_identifier))
        scores = {}
        for case in (case for case in self.dataset.cases if case.id in cases):
            stored = store.read(case.id)
            if previous is not None:
                raw, _ = read_label(self.run_folder("3d_lowres", fold) / "validation" / f"{case.id}.nii.gz")
                internal = self.dataset.labels.to_internal(raw)
                grid = previous_stage_label(internal, stored.properties, self.plans, configuration)
                store.add_previous_stage(case.id, grid, previous)
                stored = store.read(case.id)
            logits = predict_preprocessed(
                [network], torch.from_numpy(stored.image()), configuration, device="cpu",
                previous_label=None if previous is None else stored.previous_stage(name=previous),
            )  # fmt: skip
            label = logits_to_label_map(logits, stored.properties, self.plans, configuration, self.dataset.labels)
            reference, geometry = read_label(case.label)
            raw = self.dataset.labels.to_raw(label)
            write_label(folder / "validation" / f"{case.id}.nii.gz", raw, geometry)
            scores[case.id] = evaluate_case(
                label, self.dataset.labels.to_internal(reference), labels=self.dataset.labels, spacing=geometry.spacing
            )
        write_summary(summarize(scores), folder / "validation" / "summary.json")
        record = {
            "format": 1, "dataset": self.name, "trainer": trainer, "plans_name": "p", "configuration": name,
            "fold": str(fold), "status": status, "mirror_axes": [], "architecture": "pointwise", "seed": 0,
            "previous_stage": previous, "versions": {"torch": torch.__version__},
        }  # fmt: skip
        write_json(folder / "run.json", record)
        return folder

    def run_folder(self, name, fold, trainer="t"):
        return self.workspace.run_folder(self.name, trainer, "p", name, fold)

    @property
    def folds(self):
        return {0: ("case_0", "case_2"), 1: ("case_1", "case_3")}


def write_image(path, array, geometry):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing(geometry.spacing[::-1])
    sitk.WriteImage(image, str(path))


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture
def two_biased(lab):
    """Two configurations that err in opposite directions, two folds each: their mean is right."""
    for fold, cases in lab.folds.items():
        lab.run("2d", fold, cases, 0.35)
        lab.run("3d_fullres", fold, cases, -0.3)
    return lab

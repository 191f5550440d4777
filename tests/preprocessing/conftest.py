"""Plans with one configuration, for preprocessing only: the network is never built."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans

CT = ChannelIntensities(
    mean=100.0, median=100.0, std=20.0, min=-50.0, max=300.0, percentile_00_5=20.0, percentile_99_5=180.0
)


@pytest.fixture(scope="session")
def make_plans() -> Callable[..., Plans]:
    def make(
        spacing,
        *,
        normalization=("zscore",),
        use_mask=None,
        transpose=(0, 1, 2),
        median_shape=None,
        intensities=CT,
        name="test",
    ) -> Plans:
        dims = len(spacing)
        patch = (16,) * dims
        network = NetworkSpec(
            dims=dims,
            in_channels=len(normalization),
            num_outputs=2,
            patch_size=patch,
            strides=((1,) * dims,),
            kernel_sizes=((3,) * dims,),
            features=(8,),
            blocks_encoder=(1,),
            blocks_decoder=(),
        )
        configuration = Configuration(
            name=name,
            dims=dims,
            spacing=spacing,
            median_shape=median_shape or (32.0,) * dims,
            patch_size=patch,
            batch_size=2,
            batch_dice=False,
            normalization=normalization,
            use_mask=use_mask or (False,) * len(normalization),
            data_identifier=f"plans_{name}",
            architecture="none",
            network=network,
        )
        return Plans(
            dataset_name="Dataset000_Test",
            plans_name="plans",
            planner="test",
            transpose_forward=transpose,
            transpose_backward=tuple(transpose.index(axis) for axis in range(3)),
            original_median_spacing=(1.0, 1.0, 1.0),
            original_median_shape=(32.0, 32.0, 32.0),
            intensities=(intensities,) * len(normalization),
            channel_names=tuple(f"channel {index}" for index in range(len(normalization))),
            configurations={name: configuration},
        )

    return make


@pytest.fixture
def few_cases(shared, tmp_path) -> Callable[[int], Path]:
    """Return a function that copies so many labelled hippocampi, and one without a label map, into a raw folder."""

    def copy(count: int) -> Path:
        name = "Dataset004_Hippocampus"
        source, target = shared / "data" / name, tmp_path / name
        for folder in ("imagesTr", "labelsTr", "imagesUn"):
            (target / folder).mkdir(parents=True)
        for label in sorted((source / "labelsTr").iterdir())[:count]:
            shutil.copy(label, target / "labelsTr")
            shutil.copy(source / "imagesTr" / label.name.replace(".nii", "_0000.nii"), target / "imagesTr")
        shutil.copy(next((source / "imagesUn").glob("*.nii.gz")), target / "imagesUn")
        description = json.loads((source / "dataset.json").read_text()) | {"numTraining": count}
        (target / "dataset.json").write_text(json.dumps(description))
        return target

    return copy

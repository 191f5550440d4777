"""The checks of networks' method cards that need them trained, beside those of behaviour.py.

    python benchmarks/network_behaviour.py [--only mcanet y_net diamant hi_end_mae mpu_net] [--seeds 0 1 2] [--steps N]
        [--data FOLDER] [--images FOLDER] [--workspace DIR] [--json FILE]

Every run is what a user types, at equal steps within a check; all networks of one data set train on one plan, so that
patches and batches are equal, too, and widths in proportion. A line of JSON per run, then one with "expected" and
whether it "holds", in the mean of the seeds. A check that does not hold is a finding, not an error of this script.

Minutes of one quiet core per seed, 1 to 4 a run: mcanet 9, y_net 9, diamant 7, hi_end_mae 10, mpu_net 9; three seeds of
all take two and a quarter hours. Controls that are no architectures of autoseg, such as MCANet without its attention,
are a plug-in that is written into the workspace. Another data set needs another workspace.

MCANet's images are ten tiles of histology, two of them held out. Of Hi-End-MAE only the network is in autoseg, its own
pretraining is not: `hi_end_mae` asks both of its questions of the engine's masked autoencoder, whose loss is another
one, the mean squared error of masked voxels of the normalised image, not of patches that are normalised each; all
tensors but the head's go on from it.
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from behaviour import Check, arguments, carry_out, changed_dice, last_dice, last_loss, verdict
from methods import DATA, LABELLED, Bench

IMAGES = DATA.parent / "Dataset106_MoNuSegText"
SMALLER_2D, SMALL_2D, SMALL_3D = (("--time-budget", budget) for budget in ("4m", "10m", "20m"))
STRIPES, EDGE, PERIODS = 60, 128, {1: 8.0, 2: 6.4}  # images, their pixels per side, pixels of a period by class
BLUR = 2.0  # voxels, of the labels that are oracle maps
ROUNDS = 9  # of timed steps
CONTROLS = '''"""Controls of benchmarks/network_behaviour.py."""

import torch
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.normalization import usual_norm
from autoseg.architectures.diamant import DIAMANT
from autoseg.architectures.mcanet import MCANet
from autoseg.architectures.y_net import YNet, pool
from torch import nn

from autoseg import register


@register.architecture("without_mca")
class WithoutMCA(MCANet):
    """MCANet whose attention gives back what it takes: its projection is 0 and frozen."""

    def __init__(self, spec):
        super().__init__(spec)
        for parameter in self.head.attention.project.parameters():
            nn.init.zeros_(parameter).requires_grad_(False)


@register.architecture("one_encoder")
class OneEncoder(YNet):
    """Y-Net without its second encoder, which is DIAMANT without its own: their U-Net (7 762 729 parameters)."""

    def __init__(self, spec):
        super().__init__(spec)
        widths, kernels, norm = spec.features, spec.kernel_sizes, self.options["norm"] or usual_norm(spec.dims)
        before = (spec.in_channels, *widths)[-3]
        del self.spectral
        self.spatial[-1] = double_conv(before, widths[-2], kernels[-2], norm, bias=False)
        self.bottom = double_conv(widths[-2], widths[-1], kernels[-1], norm, bias=False)
        self.decoder[-1] = double_conv(2 * widths[-2], widths[-2], kernels[-2], norm, bias=False)

    def encode(self, x):
        """Return the skips and the bottleneck."""
        features = []
        for block, stride in zip(self.spatial, self.pools, strict=True):
            features.append(block(x))
            x = pool(features[-1], stride)
        return [*features, self.bottom(x)]


@register.architecture("image_alone")
class ImageAlone(OneEncoder):
    """The U-Net on the first channel of image, oracle maps and noise maps."""

    def __init__(self, spec):
        super().__init__(spec.model_copy(update={"in_channels": 1}))

    def encode(self, x):
        """Return the features of the image."""
        return super().encode(x[:, :1])


class SomeMaps(DIAMANT):
    """DIAMANT on the image and one half of the maps."""

    oracle = True

    def __init__(self, spec):
        maps = (spec.in_channels - 1) // 2
        options = {**spec.options, "maps": maps, "channel_names": None}
        super().__init__(spec.model_copy(update={"in_channels": 1 + maps, "options": options}))

    def encode(self, x):
        """Return the features of image and chosen maps."""
        image, maps = x[:, :1], x[:, 1:].chunk(2, 1)
        return super().encode(torch.cat([image, maps[0 if self.oracle else 1]], 1))


@register.architecture("oracle_maps")
class OracleMaps(SomeMaps):
    """DIAMANT that is told the labels, blurred."""


@register.architecture("noise_maps")
class NoiseMaps(SomeMaps):
    """DIAMANT that is told nothing."""

    oracle = False
'''


def control(bench: Bench, name: str) -> str:
    """Return what `--architecture` takes for a control; the file with all of them is written if need be."""
    file = bench.workspace / "network_behaviour_controls.py"
    if not file.is_file() or file.read_text(encoding="utf-8") != CONTROLS:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CONTROLS, encoding="utf-8")
    return f"{file}:{name}"


def on(bench: Bench, data: Path) -> Bench:
    """Return the bench for another data set; its rows go where those of `bench` go."""
    other = copy.copy(bench)
    other.data = data.resolve()
    return other


def compared(
    bench: Bench, comparison: str, plans: str, arms: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[str, float]:
    """Train every arm, by the arguments of `train`, with every seed; returns the mean Dice of each."""
    dice: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm, given in arms.items():
            bench.train(comparison, arm, seed, "--plans", plans, *given)
            dice[arm].append(last_dice(bench))
    return {arm: round(statistics.mean(found), 4) for arm, found in dice.items()}


def mcanet(bench: Bench, seeds: Sequence[int]) -> None:
    """mcanet, 7: on small RGB images T is within 3 points of the U-Net; without MCA it gains at most half a point."""
    bench.plan("colour", *SMALLER_2D)
    arms = {
        "plain_unet": (),
        "mcanet": ("--architecture", "mcanet"),
        "without_mca": ("--architecture", control(bench, "without_mca")),
    }
    dice = compared(bench, "mcanet", "colour", arms, seeds)
    verdict(bench, "mcanet 7", "mcanet >= plain_unet - 0.03", dice["mcanet"] >= dice["plain_unet"] - 0.03, **dice)
    useful = dice["without_mca"] <= dice["mcanet"] + 0.005
    verdict(bench, "mcanet 7", "without_mca <= mcanet + 0.005", useful, **dice)


def y_net(bench: Bench, seeds: Sequence[int]) -> None:
    """y-net, 8: better than its U-Net where the frequency of stripes is the class; within 2 points on slices."""
    arms = {
        "one_encoder": ("--architecture", control(bench, "one_encoder")),
        "y_net": ("--architecture", "y_net"),
    }
    striped = on(bench, stripes(bench.workspace))
    striped.plan("stripes", *SMALL_2D)
    plain = ("--set", "augmentation=light")  # stripes are not scaled: they would be those of the other class
    dice = compared(striped, "stripes", "stripes", {arm: (*given, *plain) for arm, given in arms.items()}, seeds)
    verdict(bench, "y-net 8, stripes", "y_net > one_encoder", dice["y_net"] > dice["one_encoder"], **dice)
    bench.plan("slices", *SMALL_2D)
    dice = compared(bench, "slices", "slices", arms, seeds)
    near = dice["y_net"] >= dice["one_encoder"] - 0.02
    verdict(bench, "y-net 8, hippocampus", "y_net >= one_encoder - 0.02", near, **dice)


def stripes(place: Path) -> Path:
    """Write images of noise with four discs of stripes, whose class is the period alone; returns their raw folder."""
    import numpy as np
    from PIL import Image

    folder = place / "Dataset905_Stripes"
    if (folder / "dataset.json").is_file():
        return folder
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:EDGE, :EDGE]
    for number in range(STRIPES):
        image, label = random.standard_normal((EDGE, EDGE)), np.zeros((EDGE, EDGE), np.uint8)
        for quarter, value in enumerate(random.permutation([1, 1, 2, 2])):
            row, column = (EDGE / 4 + EDGE / 2 * side + random.uniform(-6, 6) for side in divmod(quarter, 2))
            disc = (rows - row) ** 2 + (columns - column) ** 2 < random.uniform(18, 25) ** 2
            angle, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
            along = rows * np.sin(angle) + columns * np.cos(angle)
            image[disc] += np.sin(2 * np.pi * along / PERIODS[value] + phase)[disc]
            label[disc] = value
        grey = np.clip(128 + 32 * image, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "imagesTr" / f"stripes_{number:02}_0000.png")
        Image.fromarray(label).save(folder / "labelsTr" / f"stripes_{number:02}.png")
    return described(folder, ["grey"], {"background": 0, "wide": 1, "narrow": 2}, STRIPES, ".png")


def described(folder: Path, channels: Sequence[str], labels: Mapping[str, int], cases: int, ending: str) -> Path:
    """Write the dataset.json of a raw folder, last of all; returns the folder."""
    names = {str(number): name for number, name in enumerate(channels)}
    description = {"channel_names": names, "labels": labels, "numTraining": cases, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def diamant(bench: Bench, seeds: Sequence[int]) -> None:
    """diamant, 6: a step takes at most 1.7 times a U-Net's; 7: oracle maps give 3 points, noise costs at most 2."""
    seconds = step_seconds(bench)
    bench.keep({"comparison": "steps of diamant and its U-Net", "processor seconds": seconds})
    ratio = round(seconds["diamant"] / seconds["one_encoder"], 3)
    verdict(bench, "diamant 6", "ratio <= 1.7", ratio <= 1.7, ratio=ratio)
    mapped = on(bench, with_maps(bench.data, bench.workspace))
    mapped.plan("maps", *SMALL_2D)
    arms = {name: ("--architecture", control(bench, name)) for name in ("image_alone", "oracle_maps", "noise_maps")}
    dice = compared(mapped, "maps", "maps", arms, seeds)
    told = dice["oracle_maps"] > dice["image_alone"] + 0.03
    verdict(bench, "diamant 7, oracle", "oracle_maps > image_alone + 0.03", told, **dice)
    undisturbed = dice["noise_maps"] >= dice["image_alone"] - 0.02
    verdict(bench, "diamant 7, noise", "noise_maps >= image_alone - 0.02", undisturbed, **dice)


def step_seconds(bench: Bench) -> dict[str, float]:
    """Return the median processor seconds of a training step, both in turn, with published widths and cached maps."""
    import torch

    from autoseg import plugins
    from autoseg.devices import choose_precision
    from autoseg.plans import NetworkSpec
    from autoseg.training.probe import _make_step

    spec = NetworkSpec(
        dims=2, in_channels=1, num_outputs=3, patch_size=(128, 128), strides=((1, 1), *[(2, 2)] * 4),
        kernel_sizes=((3, 3),) * 5, features=(32, 64, 128, 256, 512), blocks_encoder=(2,) * 5, blocks_decoder=(2,) * 4,
        deep_supervision=False,
    )  # fmt: skip
    specs = {
        "one_encoder": (control(bench, "one_encoder"), spec),
        "diamant": ("diamant", spec.model_copy(update={"in_channels": 7, "options": {"maps": 6}})),
    }
    threads, precision = torch.get_num_threads(), choose_precision("auto", torch.device("cpu"))
    torch.set_num_threads(1)
    try:
        steps = {}
        for name, (reference, each) in specs.items():
            kind = plugins.load("architecture", reference, bench.workspace)
            steps[name] = _make_step(kind, each, 2, "cpu", "adamw", precision)
            steps[name]()
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                began = time.process_time()
                step()
                spent[name].append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    return {name: round(statistics.median(times), 4) for name, times in spent.items()}


def with_maps(data: Path, place: Path) -> Path:
    """Write the cases with a map per class, its blurred label, and as many maps of noise; returns their raw folder."""
    import numpy as np
    import SimpleITK
    from scipy.ndimage import gaussian_filter

    from autoseg.plans import COMPUTED_CHANNEL

    folder = place / "Dataset906_Maps"
    if (folder / "dataset.json").is_file():
        return folder
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    values = [value for name, value in labels.items() if name != "background"]
    random = np.random.default_rng(0)
    files = sorted((data / "labelsTr").glob("*.nii.gz"))
    for file in files:
        image = data / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copyfile(image, folder / "imagesTr" / image.name)
        shutil.copyfile(file, folder / "labelsTr" / file.name)
        geometry = SimpleITK.ReadImage(str(image))
        label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        oracle = [gaussian_filter((label == value).astype(np.float32), BLUR) for value in values]
        noise = [random.random(label.shape, np.float32) for _ in values]
        for number, each in enumerate([*oracle, *noise], start=1):
            found = SimpleITK.GetImageFromArray(each)
            found.CopyInformation(geometry)
            SimpleITK.WriteImage(found, str(folder / "imagesTr" / image.name.replace("_0000", f"_{number:04}")))
    return described(folder, ["MRI", *[COMPUTED_CHANNEL] * (2 * len(values))], labels, len(files), ".nii.gz")


def hi_end_mae(bench: Bench, seeds: Sequence[int]) -> None:
    """hi-end-mae, last: masked voxels are told better than by 0.8; fine-tuned on 10 cases it beats scratch."""
    bench.plan("vit", *SMALL_3D, "--architecture", "hi_end_mae")
    plans, losses = ("--plans", "vit"), []
    dice: dict[str, list[float]] = {"scratch": [], "fine_tuned": []}
    for seed in seeds:
        source = bench.train("hi_end_mae", "pretrained", seed, *plans, "--set", "sparse=false", command="pretrain")
        losses.append(last_loss(source))
        bench.keep({"comparison": "hi_end_mae", "arm": "pretrained", "seed": seed, "loss": losses[-1]})
        for arm, start in {"scratch": (), "fine_tuned": ("--pretrained", str(source))}.items():
            run = bench.train("hi_end_mae", arm, seed, *plans, *LABELLED, *start)
            dice[arm].append(last_dice(bench))
        bench.keep({"comparison": "hi_end_mae", "arm": "fine_tuned", "seed": seed, "weights": loaded_weights(run)})
    worst = max(losses)
    verdict(bench, "hi-end-mae, loss of masked_autoencoder", "worst < 0.8", worst < 0.8, worst=worst)
    found = {arm: round(statistics.mean(each), 4) for arm, each in dice.items()}
    better = found["fine_tuned"] > found["scratch"]
    verdict(bench, "hi-end-mae, after masked_autoencoder", "fine_tuned > scratch", better, **found)


def loaded_weights(run: Path) -> str:
    """Return what the log of a run tells of the tensors that it began with."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in lines if line["event"] == "note"]
    return next(note.splitlines()[0] for note in notes if "tensors loaded" in note)


def mpu_net(bench: Bench, seeds: Sequence[int]) -> None:
    """mpu-net, 8: the mean map is no worse than out1, the coarsest, and within 3 points of the U-Net.

    Once with the authors' loss and rate, as suits short runs, and once by the engine's recipe.
    """
    bench.plan("mean_map", *SMALL_3D)
    network = ("--architecture", "mpu_net")
    arms = {
        "plain_unet": (),
        "mpu_net": (*network, "--trainer", "tversky_bce"),
        "mpu_net_common": (*network, *common_recipe(bench.steps)),
    }
    dice = compared(bench, "mpu_net", "mean_map", arms, seeds)
    for arm in ("mpu_net", "mpu_net_common"):
        maps: dict[str, list[float]] = {"mean": [], "out1": []}
        for seed in seeds:
            run = next(bench.workspace.glob(f"results/*/mpu_net.{arm}.{seed}__*/fold_*"))
            for name, change in {"mean": lambda network: None, "out1": coarsest}.items():
                maps[name].append(changed_dice(bench, run, name, change))
            bench.keep({"comparison": "maps", "arm": arm, "seed": seed, **{n: each[-1] for n, each in maps.items()}})
        found = {name: round(statistics.mean(each), 4) for name, each in maps.items()}
        verdict(bench, f"mpu-net 8, {arm}", "mean >= out1", found["mean"] >= found["out1"], **found)
        near = dice[arm] >= dice["plain_unet"] - 0.03
        verdict(bench, f"mpu-net 8, {arm}", f"{arm} >= plain_unet - 0.03", near, **dice)


def common_recipe(steps: int) -> list[str]:
    """Return the settings of the engine's recipe for so many steps, which the authors' would replace."""
    from autoseg.training.recipe import recipe_for

    recipe = recipe_for(steps)
    names = ("optimizer", "learning_rate", "weight_decay")
    return [part for name in names for part in ("--set", f"{name}={recipe[name]}")]


def coarsest(network: Any) -> None:
    """Let MPU-Net predict by its coarsest map alone."""
    network._mean = lambda maps: maps[0]


CHECKS = {
    "mcanet": Check(mcanet, "2d", 1200, "images"),
    "y_net": Check(y_net, "2d", 1500),
    "diamant": Check(diamant, "2d", 2000),
    "hi_end_mae": Check(hi_end_mae, "3d_fullres", 400),
    "mpu_net": Check(mpu_net, "3d_fullres", 500),
}


def main() -> None:
    """Run the checks asked for."""
    parser = arguments(CHECKS, __doc__, seeds=[0, 1, 2], workspace="autoseg_network_behaviour")
    parser.add_argument("--images", type=Path, default=IMAGES, help="a raw folder of small RGB images")
    carry_out(CHECKS, parser.parse_args())


if __name__ == "__main__":
    main()

"""What attention maps of a transformer pretrained here tell of the objects: AUC and IoU on images that it never saw.

    python benchmarks/attention_maps.py DATASET --workspace DIR --seeds 3          pretrains by `autoseg pretrain`
    python benchmarks/attention_maps.py DATASET --workspace DIR --run RUN [RUN ...]    takes runs that are there

DATASET has 2D images, training cases and labelled test cases (`Dataset105_NucleiDSB2018`). Pretraining sees the
training images without labels. Head (inverted where that helps) and threshold are chosen on the training images by AUC
and IoU over all of their pixels, and scored on the test images: anything labelled against background. Beside it stand
transformers of the same size with random weights, and the brightness of the pixel and of the transformer's patches.
`--set` goes to the trainer. Seeds give one row each, and a row of mean and range where there are several.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from autoseg.architectures.blocks.attention_maps import AttentionViT, attention_maps, load_vit, random_vit, scaled
from torch import Tensor

from autoseg.raw import Case, Dataset, open_dataset, read_image, read_label

SETTINGS = ("steps=400", "width=96", "depth=4", "local_crops=4", "teacher_decay=0.98")
BINS = 1024  # of values in 0..1, between which pixels are not told apart
Maps = Callable[[Tensor], Tensor]  # (1, C, H, W) -> (1, candidates, H, W) in 0..1


@dataclass(frozen=True)
class Score:
    """What a chosen candidate reaches on the test images, and the AUC of all candidates there."""

    auc: float
    iou: float
    all_auc: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain where runs are not given, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a data set's folder, or its name in the workspace")
    parser.add_argument("--workspace", type=Path, required=True, help="where plans and runs go")
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="folders of `pretrain`, instead of new ones")
    parser.add_argument("--seeds", type=int, default=1, help="pretrainings, seeds 0 to N-1")
    parser.add_argument("--random", type=int, default=3, help="transformers with random weights")
    parser.add_argument("--set", nargs="*", default=list(SETTINGS), metavar="NAME=VALUE", help="of the trainer `dino`")
    given = parser.parse_args(arguments)
    runs = given.run or pretrained(given)
    data = open_dataset(given.dataset, given.workspace)
    vits = [load_vit(run / "weights.safetensors") for run in runs]
    ours = [score(data, maps_of(vit)) for vit in vits]
    random = [score(data, maps_of(drawn(vits[0], seed))) for seed in range(given.random)]
    print("| what tells | AUC | IoU | AUC of all |\n| --- | --- | --- | --- |")
    for run, found in zip(runs, ours, strict=True):
        row(f"pretrained, {run.parent.name}: the best of {vits[0].size.heads} heads", [found])
    if len(ours) > 1:
        row(f"the same, {len(ours)} runs, mean and range", ours)
    if random:
        row(f"{len(random)} random transformers of that size, mean and range", random)
    patch = vits[0].size.patch
    row(f"mean intensity of the same {patch} x {patch} patches", [score(data, lambda x: patches(x, patch))])
    row("intensity of the pixel", [score(data, brightness)])


def pretrained(given: argparse.Namespace) -> list[Path]:
    """Return the folders of the runs that the commands leave, one per seed; finished ones are not done again."""
    place = ("--workspace", str(given.workspace))
    command("plan-and-preprocess", given.dataset, "-c", "2d", "--device", "cpu", *place)
    options = [part for setting in given.set for part in ("--set", setting)]
    return [
        Path(json.loads(command(
            "pretrain", given.dataset, "2d", "--trainer", "dino", "--workers", "1", "--seed", str(seed), "--device",
            "cpu", "--name", f"seed{seed}", "--json", *options, *place,
        ))[0]["folder"])
        for seed in range(given.seeds)
    ]  # fmt: skip


def command(*arguments: str) -> str:
    """Return what a command of autoseg writes on standard output."""
    done = subprocess.run([sys.executable, "-m", "autoseg.cli", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"autoseg {' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def maps_of(vit: AttentionViT) -> Maps:
    """Return what shows the attention of a transformer."""
    return lambda image: attention_maps(vit, image)


def drawn(like: AttentionViT, seed: int) -> AttentionViT:
    """Return a transformer of the same size with random weights of a seed."""
    vit = random_vit(like.size)
    draw = torch.Generator().manual_seed(seed)
    for tensor in vit.buffers():
        if tensor.ndim > 1:
            tensor.normal_(std=0.02, generator=draw)
    return vit


def brightness(image: Tensor) -> Tensor:
    """Return the mean of the channels, scaled as the transformer sees them."""
    return scaled(image).mean(1, keepdim=True)


def patches(image: Tensor, edge: int) -> Tensor:
    """Return the mean brightness of patches, as maps show them."""
    pooled = torch.nn.functional.avg_pool2d(brightness(image), edge, edge, ceil_mode=True, count_include_pad=False)
    return torch.nn.functional.interpolate(pooled, size=tuple(image.shape[2:]), mode="nearest")


def score(data: Dataset, maps: Maps) -> Score:
    """Choose candidate, direction and threshold on the training cases, and score them on the test cases."""
    training, test = counts(data, data.cases, maps), counts(data, data.test, maps)
    areas = [area(*pair) for pair in training]
    best = int(np.argmax([max(each, 1 - each) for each in areas]))
    turned = areas[best] < 0.5
    threshold = int(np.argmax(overlaps(*turn(training[best], turned))))
    found = turn(test[best], turned)
    return Score(area(*found), float(overlaps(*found)[threshold]), tuple(area(*pair) for pair in test))


def counts(data: Dataset, cases: Sequence[Case], maps: Maps) -> np.ndarray:
    """Return (candidates, 2, BINS): how many pixels of background and of objects have which value."""
    total: np.ndarray | None = None
    for case in cases:
        if case.label is None:
            continue
        image = read_image(case.images, channels=len(data.channel_names)).data
        found = maps(torch.from_numpy(np.ascontiguousarray(image[:, 0], dtype=np.float32))[None])[0].numpy()
        bins = np.minimum((found * BINS).astype(int), BINS - 1)
        objects = read_label(case.label)[0][0] > 0
        here = np.stack([
            np.stack([np.bincount(each[objects == wanted], minlength=BINS) for wanted in (False, True)])
            for each in bins
        ])  # fmt: skip
        total = here if total is None else total + here
    if total is None:
        sys.exit("there are no labelled cases to choose on or to score")
    return total


def turn(pair: np.ndarray, turned: bool) -> np.ndarray:
    """Return the counts of a candidate, or of one minus it."""
    return pair[:, ::-1] if turned else pair


def area(background: np.ndarray, objects: np.ndarray) -> float:
    """Return the share of pairs in which a pixel of an object has the higher value; equal ones count half."""
    below = np.cumsum(background) - background
    return float((objects * (below + background / 2)).sum() / (objects.sum() * background.sum()))


def overlaps(background: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the IoU of what lies at or above each bin."""
    wrong, right = (np.cumsum(counted[::-1])[::-1] for counted in (background, objects))
    return right / (objects.sum() + wrong)


def row(name: str, scores: Sequence[Score]) -> None:
    """Print mean and range."""
    cells = [in_words([found.auc for found in scores]), in_words([found.iou for found in scores])]
    every = [auc for found in scores for auc in found.all_auc]
    print(f"| {name} | {' | '.join(cells)} | {min(every):.3f} to {max(every):.3f} |", flush=True)


def in_words(values: Sequence[float]) -> str:
    """Return a value, or mean and range."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

"""The checks of networks' method cards that compare a network, trained, with itself less one part, or with a U-Net.

    python benchmarks/ablations.py [--only hiformer transdae ...] [--seeds 0 1 2] [--steps N] [--data FOLDER]
        [--images FOLDER] [--lesions FOLDER] [--workspace DIR] [--json FILE]

Every run is what a user types, at equal steps and on one plan within a check, so that patches, batches and widths in
proportion are equal, and with the engine's recipe for short runs in place of the authors', so that only networks differ
(lightm_unet has its authors' at the rate that its card names). Without a language model's weights, medvisionllama's
frozen block is random. A line of JSON per run, then one with "expected" and whether it "holds", in the mean of the
seeds. A check that does not hold is a finding, not an error of this script. The networks with a part put out of use are
those of ablation_controls.py.

Lesions are those of two patients with multiple sclerosis, 1.9 % and 0.3 % of the voxels; the network learns on one and
is scored on the other.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ablation_controls import CURVE
from behaviour import Check, arguments, carry_out, changed_dice, last_dice, verdict
from methods import DATA, Bench
from network_behaviour import IMAGES, SMALL_2D, SMALL_3D, SMALLER_2D, common_recipe, compared

CONTROLS = Path(__file__).with_name("ablation_controls.py")
LESIONS = DATA.parent / "Dataset111_MSLesionMR"
WITHIN = {"focal_unet": 0.04, "hiformer": 0.04, "d_former_8": 0.04, "transdae": 0.05}  # of the U-Net, by the cards
NOISE = 0.02  # of Dice between two seeds of so short a run


def arms(bench: Bench, *names: str, more: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the arguments that train each network by the common recipe; a control is named as one."""
    known = CONTROLS.read_text(encoding="utf-8")
    given = {name: f"{CONTROLS}:{name}" if f'"{name}"' in known else name for name in names}
    recipe = (*common_recipe(bench.steps), "--set", "dice_weight=1", "--set", "cross_entropy_weight=1")
    recipe = (*recipe, "--set", "dice_squared=false", "--set", "dice_background=false", *more)
    return {name: ("--architecture", reference, *recipe) for name, reference in given.items()}


def on_slices(bench: Bench, seeds: Sequence[int], *names: str) -> dict[str, float]:
    """Return the mean Dice of networks on slices of hippocampi, all of one plan."""
    bench.plan("slices", *SMALL_2D)
    return compared(bench, "slices", "slices", arms(bench, *names), seeds)


def near(bench: Bench, check: str, network: str, dice: dict[str, float]) -> None:
    """Keep whether a network comes as near to the U-Net as its card says."""
    margin = WITHIN[network]
    holds = dice[network] >= dice["plain_unet"] - margin
    verdict(bench, check, f"{network} >= plain_unet - {margin}", holds, **dice)


def at_least(bench: Bench, check: str, network: str, other: str, less: float, dice: dict[str, float]) -> None:
    """Keep whether a network is as good as another one, less a margin."""
    verdict(bench, check, f"{network} >= {other} - {less}", dice[network] >= dice[other] - less, **dice)


def hiformer(bench: Bench, seeds: Sequence[int]) -> None:
    """hiformer, 7: within 4 points of the U-Net; with its fusion not worse than without, by more than half a point."""
    dice = on_slices(bench, seeds, "plain_unet", "hiformer", "hiformer_released")
    near(bench, "hiformer 7", "hiformer", dice)
    at_least(bench, "hiformer 7, fusion", "hiformer", "hiformer_released", 0.005, dice)


def focal_unet(bench: Bench, seeds: Sequence[int]) -> None:
    """focal-unet, 7: within 4 points of the U-Net."""
    near(bench, "focal-unet 7", "focal_unet", on_slices(bench, seeds, "plain_unet", "focal_unet"))


def paratranscnn(bench: Bench, seeds: Sequence[int]) -> None:
    """paratranscnn, 8: with 96 channels no more than a point behind its ResNet U-Net without transformers."""
    dice = on_slices(bench, seeds, "paratranscnn_96", "resnet_unet")
    at_least(bench, "paratranscnn 8", "paratranscnn_96", "resnet_unet", 0.01, dice)


def transdae(bench: Bench, seeds: Sequence[int]) -> None:
    """transdae, 7 and 8: not worse than attention over space alone; within 5 points of the U-Net."""
    dice = on_slices(bench, seeds, "plain_unet", "transdae", "transdae_space")
    at_least(bench, "transdae 7", "transdae", "transdae_space", 0.005, dice)
    near(bench, "transdae 8", "transdae", dice)


def u_transformer(bench: Bench, seeds: Sequence[int]) -> None:
    """u-transformer, 7: no more than a point behind its U-Net without any attention."""
    dice = on_slices(bench, seeds, "u_transformer", "u_transformer_plain")
    at_least(bench, "u-transformer 7", "u_transformer", "u_transformer_plain", 0.01, dice)


def ms_dual_guided(bench: Bench, seeds: Sequence[int]) -> None:
    """ms-dual-guided, 7: the mean of the predictions after attention is no worse than that of those before it."""
    bench.plan("slices", *SMALL_2D)
    more = ("--trainer", "guided_attention")
    compared(bench, "guided", "slices", arms(bench, "ms_dual_guided", more=more), seeds)
    dice: dict[str, list[float]] = {"after": [], "before": []}
    for seed in seeds:
        run = next(bench.workspace.glob(f"results/*/guided.ms_dual_guided.{seed}__*/fold_*"))
        for name, change in {"after": lambda network: None, "before": by_early_heads}.items():
            dice[name].append(changed_dice(bench, run, name, change))
        bench.keep({"comparison": "guided", "seed": seed, **{name: found[-1] for name, found in dice.items()}})
    found = {name: round(statistics.mean(each), 4) for name, each in dice.items()}
    at_least(bench, "ms-dual-guided 7", "after", "before", 0.0, found)


def by_early_heads(network: Any) -> None:
    """Let the network predict by the mean of its predictions before attention."""
    import torch

    def decode(features: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean of the early predictions."""
        network.training = True  # so that all outputs are made; its layers stay as they are
        outputs = whole(features)
        network.training = False
        return torch.stack(outputs[len(network.heads) :]).mean(0)

    whole, network.decode = network.decode, decode


def unet_variants(bench: Bench, seeds: Sequence[int]) -> None:
    """unet-variants, 7: Res-UNet's curve is as smooth as the UNet's in most seeds; both additions cost no point."""
    bench.plan("slices", *SMALL_2D)
    names = ("unet", "res_unet", "att_res_unet")
    given = arms(bench, *names, more=("--trainer", f"{CONTROLS}:curve"))
    dice = compared(bench, "variants", "slices", given, seeds)
    at_least(bench, "unet-variants 7", "att_res_unet", "unet", 0.01, dice)
    rough = {name: [roughness(bench, f"variants.{name}.{seed}") for seed in seeds] for name in names}
    smoother = sum(res <= plain for res, plain in zip(rough["res_unet"], rough["unet"], strict=True))
    found = {name: round(statistics.mean(each), 5) for name, each in rough.items()}
    holds = 3 * smoother >= 2 * len(seeds)
    verdict(bench, "unet-variants 7, curve", "res_unet as smooth as unet in 2 of 3", holds, smoother=smoother, **found)


def roughness(bench: Bench, name: str) -> float:
    """Return how much the slope of a held-out loss changes from one point to the next, on average."""
    file = next(bench.workspace.glob(f"results/*/{name}__*/fold_*/{CURVE}"))
    losses = [json.loads(line)["loss"] for line in file.read_text(encoding="utf-8").splitlines()]
    slopes = [after - before for before, after in pairwise(losses)]
    return statistics.mean(abs(after - before) for before, after in pairwise(slopes))


def rare_foreground(bench: Bench, seeds: Sequence[int]) -> None:
    """unet-variants, 7: where foreground is below 2 %, the focal loss or Dice finds more of it than cross-entropy."""
    bench.plan("lesions", *SMALL_2D)
    losses = {
        "cross_entropy": ("--set", "dice_weight=0", "--set", "cross_entropy_weight=1"),
        "dice": ("--set", "dice_weight=1", "--set", "cross_entropy_weight=0"),
        "focal": ("--set", "dice_weight=0", "--set", "cross_entropy_weight=1", "--trainer", "focal"),
    }
    recalls: dict[str, list[float]] = {loss: [] for loss in losses}
    network = ("--plans", "lesions", "--architecture", "unet", *common_recipe(bench.steps))
    for seed in seeds:
        for loss, given in losses.items():
            run = bench.train("lesions", loss, seed, *network, *given)
            recalls[loss].append(recall(run))
            bench.keep({"comparison": "lesions", "arm": loss, "seed": seed, "recall": recalls[loss][-1]})
    found = {loss: round(statistics.mean(each), 4) for loss, each in recalls.items()}
    holds = max(found["dice"], found["focal"]) > found["cross_entropy"]
    verdict(bench, "unet-variants 7, lesions", "recall of dice or focal > cross_entropy", holds, **found)


def recall(run: Path) -> float:
    """Return the share of the foreground of the validation cases that a run found."""
    cases = json.loads((run / "validation" / "summary.json").read_text(encoding="utf-8"))["cases"].values()
    found = sum(scores["tp"] for case in cases for scores in case.values())
    missed = sum(scores["fn"] for case in cases for scores in case.values())
    return round(found / (found + missed), 4)


def resunet_plus_plus(bench: Bench, seeds: Sequence[int]) -> None:
    """resunet-plusplus, 7: on small RGB images at least as good as a U-Net of its width."""
    bench.plan("colour", *SMALLER_2D)
    dice = compared(bench, "colour", "colour", arms(bench, "resunet_plus_plus", "narrow_unet"), seeds)
    at_least(bench, "resunet-plusplus 7", "resunet_plus_plus", "narrow_unet", 0.0, dice)


def meddinov3(bench: Bench, seeds: Sequence[int]) -> None:
    """meddinov3, last: tokens of four depths beat those of the last block alone."""
    dice = on_slices(bench, seeds, "meddinov3", "meddinov3_last")
    better = dice["meddinov3"] > dice["meddinov3_last"]
    verdict(bench, "meddinov3, last", "meddinov3 > meddinov3_last", better, **dice)


def scans(bench: Bench, seeds: Sequence[int]) -> None:
    """vm-unet and msvm-unet, 7: both learn; the second, from random weights, does about as well as the first."""
    dice = on_slices(bench, seeds, "vm_unet", "msvm_unet")
    verdict(bench, "vm-unet 7", "vm_unet > 0.5, a constant has 0", dice["vm_unet"] > 0.5, **dice)
    at_least(bench, "msvm-unet 7", "msvm_unet", "vm_unet", NOISE, dice)


def d_former(bench: Bench, seeds: Sequence[int]) -> None:
    """d-former, 8: within 4 points of the U-Net; local groups alone are not better by more than half a point."""
    bench.plan("volumes", *SMALL_3D)
    names = ("plain_unet", "d_former_8", "d_former_local")
    dice = compared(bench, "volumes", "volumes", arms(bench, *names), seeds)
    near(bench, "d-former 8", "d_former_8", dice)
    at_least(bench, "d-former 8, dilated groups", "d_former_8", "d_former_local", 0.005, dice)


def medvisionllama(bench: Bench, seeds: Sequence[int]) -> None:
    """medvisionllama, 8: a frozen block of random weights makes no difference beyond noise."""
    bench.plan("volumes", *SMALL_3D)
    dice = compared(bench, "volumes", "volumes", arms(bench, "medvisionllama", "medvisionllama_plain"), seeds)
    same = abs(dice["medvisionllama"] - dice["medvisionllama_plain"]) <= NOISE
    verdict(bench, "medvisionllama 8", f"both equal within {NOISE}", same, **dice)


def lightm_unet(bench: Bench, seeds: Sequence[int]) -> None:
    """lightm-unet, 8: above 0.6 within some hundreds of steps of Adam at 0.001."""
    bench.plan("scanned", "--time-budget", "2m", "--architecture", "lightm_unet")  # small patches: it scans every voxel
    own = ("--plans", "scanned", "--set", "learning_rate=1e-3")
    found = []
    for seed in seeds:
        bench.train("lightm_unet", "adam", seed, *own)
        found.append(last_dice(bench))
    verdict(bench, "lightm-unet 8", "worst > 0.6", min(found) > 0.6, worst=min(found))


CHECKS = {
    "hiformer": Check(hiformer, "2d", 1000),
    "focal_unet": Check(focal_unet, "2d", 1000),
    "paratranscnn": Check(paratranscnn, "2d", 200),
    "transdae": Check(transdae, "2d", 1000),
    "u_transformer": Check(u_transformer, "2d", 1000),
    "ms_dual_guided": Check(ms_dual_guided, "2d", 400),
    "unet_variants": Check(unet_variants, "2d", 1000),
    "rare_foreground": Check(rare_foreground, "2d", 600, "lesions"),
    "resunet_plus_plus": Check(resunet_plus_plus, "2d", 1200, "images"),
    "meddinov3": Check(meddinov3, "2d", 1000),
    "scans": Check(scans, "2d", 300),
    "d_former": Check(d_former, "3d_fullres", 500),
    "medvisionllama": Check(medvisionllama, "3d_fullres", 500),
    "lightm_unet": Check(lightm_unet, "3d_fullres", 900),
}


def main() -> None:
    """Run the checks asked for."""
    parser = arguments(CHECKS, __doc__, seeds=[0, 1, 2], workspace="autoseg_ablations")
    parser.add_argument("--images", type=Path, default=IMAGES, help="a raw folder of small RGB images")
    parser.add_argument("--lesions", type=Path, default=LESIONS, help="a raw folder of rare foreground")
    carry_out(CHECKS, parser.parse_args())


if __name__ == "__main__":
    main()

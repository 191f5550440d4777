"""The behaviour that the method cards expect of networks once trained: what tests of seconds cannot show.

    python benchmarks/behaviour.py [--only transfer mamba relevance nested ...] [--seeds 0 1 2] [--data FOLDER]

Each is one check of a card, on hippocampus MRI at equal steps, through the commands: a line of JSON per run, then one
with "expected" and whether it "holds". A check that does not hold is a finding, not an error of this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from methods import DATA, Bench

FEW = 5  # labelled cases that are fine-tuned on


class Check(NamedTuple):
    """What measures a check, in which configuration, in how many steps a run, on the data of which option."""

    measure: Callable[[Bench, Sequence[int]], None]
    configuration: str
    steps: int
    data: str = "data"


def last_dice(bench: Bench) -> float:
    """Return the Dice of the run that was trained last."""
    return bench.rows[-1]["dice"]


def last_loss(run: Path) -> float:
    """Return the loss of the last steps of a run, as its log tells it."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"][-1]


def verdict(bench: Bench, check: str, expected: str, holds: bool, **found: float) -> None:
    """Keep what a check expects and whether it came true."""
    bench.keep({"check": check, "expected": expected, "holds": bool(holds), **found})


def half(data: Path, number: int, place: Path) -> Path:
    """Make a raw folder of every second case, from `number` 0 or 1 on, as links; returns it."""
    folder = place / f"Dataset9{number}4_Half{number}"
    cases = sorted(label.name.removesuffix(".nii.gz") for label in (data / "labelsTr").glob("*.nii.gz"))[number::2]
    link_cases(data, cases, folder)
    return folder


def link_cases(data: Path, cases: Sequence[str], folder: Path) -> None:
    """Make a raw folder of some cases of another one, as links."""
    for case in cases:
        for name in (f"labelsTr/{case}.nii.gz", f"imagesTr/{case}_0000.nii.gz"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                (folder / name).symlink_to((data / name).resolve())
    description = json.loads((data / "dataset.json").read_text()) | {"numTraining": len(cases)}
    (folder / "dataset.json").write_text(json.dumps(description))


def transfer(bench: Bench, seeds: Sequence[int]) -> None:
    """stu-net, 6: trained on one half, fine-tuned on few cases of the other, against scratch at equal steps."""
    first, second = (
        Bench(half(bench.data, number, bench.workspace), bench.workspace, bench.configuration, bench.steps, None)
        for number in (0, 1)
    )
    for plans, each in (("stu_0", first), ("stu_1", second)):
        each.plan(plans, "--time-budget", "20m", "--architecture", "stu_net", "--network-option", "size=S")
    scratch, tuned = [], []
    for seed in seeds:
        source = first.train("transfer", "source", seed, "--plans", "stu_0", fold="all")
        few = ("--labelled", str(FEW), "--plans", "stu_1")
        second.train("transfer", "scratch", seed, *few)
        scratch.append(last_dice(second))
        second.train("transfer", "fine_tuned", seed, *few, "--pretrained", str(source))
        tuned.append(last_dice(second))
    found = {"scratch": statistics.mean(scratch), "fine_tuned": statistics.mean(tuned)}
    verdict(bench, "stu-net 6", "fine_tuned > scratch", found["fine_tuned"] > found["scratch"], **found)


def mamba(bench: Bench, seeds: Sequence[int]) -> None:
    """segmamba, 8: cross-entropy below 0.2 within some hundreds of steps."""
    bench.plan("mamba", "--time-budget", "20m", "--architecture", "segmamba")
    plain = ("--set", "dice_weight=0", "--set", "deep_supervision=false")
    losses = []
    for seed in seeds:
        losses.append(last_loss(bench.train("mamba", "cross_entropy", seed, "--plans", "mamba", *plain)))
    worst = max(losses)
    verdict(bench, "segmamba 8", "cross-entropy < 0.2", worst < 0.2, worst=worst)


def relevance(bench: Bench, seeds: Sequence[int]) -> None:
    """primus, 5 and 8: Dice above 0.7 in both versions; none left where all transformer blocks are the identity."""
    dice: dict[int, list[float]] = {1: [], 2: []}
    for version, found in dice.items():
        name = f"primus{version}"
        options = ("--network-option", f"version={version}")
        bench.plan(name, "--time-budget", "20m", "--architecture", "primus", *options)
        for seed in seeds:
            folder = bench.train("relevance", name, seed, "--plans", name)
            found.append(last_dice(bench))
            left = without_blocks(bench, folder)
            verdict(bench, "primus 5", "Dice collapses", left < 0.5 * found[-1], trained=found[-1], without=left)
    worst = {f"version_{version}": min(found) for version, found in dice.items()}
    verdict(bench, "primus 8", "both above 0.7", min(worst.values()) > 0.7, **worst)


def without_blocks(bench: Bench, run: Path) -> float:
    """Return the mean Dice of the validation cases after every transformer block was put out of use."""
    import torch

    def silence(network: Any) -> None:
        for block in network.blocks:
            torch.nn.init.zeros_(block.scale_attention)
            torch.nn.init.zeros_(block.scale_mlp)

    return changed_dice(bench, run, "without_blocks", silence)


def changed_dice(bench: Bench, run: Path, name: str, change: Callable[[Any], None]) -> float:
    """Return the mean Dice of a run's validation cases after `change` was done to its networks; `name` tells it."""
    import autoseg
    from autoseg.storage import read_json

    trainer = run.parent.name.split("__")[0]
    chosen = bench.autoseg("find-best", str(bench.data), "--trainer", trainer, "--restart", "--json")
    predictor = autoseg.Predictor.load(json.loads(chosen)["model"])
    for network in (network for member in predictor.members for network in member.networks):
        change(network)
    cases, output = run / "cases", run / f"predicted_{name}"
    link_cases(bench.data, read_json(run / "run.json")["validation_cases"], cases)
    predictor.predict_folder(cases / "imagesTr", output)
    return round(autoseg.evaluate(output, cases / "labelsTr").foreground_mean["dice"], 4)


def networks(bench: Bench, seeds: Sequence[int]) -> None:
    """unet-plus-plus 8 and xlstm-unet 8: not worse than the U-Net of the same plan minus noise."""
    arms = {
        "plain_unet": ("plain_unet",),
        "unet_plus_plus": ("unet_plus_plus",),
        "residual_encoder_unet": ("residual_encoder_unet",),
        "xlstm_enc": ("xlstm_unet",),
        "xlstm_bot": ("xlstm_unet", "--network-option", "variant=bot"),
    }
    dice = {}
    for arm, (architecture, *options) in arms.items():
        bench.plan(arm, "--time-budget", "20m", "--architecture", architecture, *options)
        found = []
        for seed in seeds:
            bench.train("networks", arm, seed, "--plans", arm)
            found.append(last_dice(bench))
        dice[arm] = statistics.mean(found)
    nested = dice["unet_plus_plus"] >= dice["plain_unet"] - 0.01
    verdict(bench, "unet-plus-plus 8", "unet_plus_plus >= plain_unet - 0.01", nested, **dice)
    rising = dice["xlstm_enc"] >= dice["xlstm_bot"] - 0.01 >= dice["residual_encoder_unet"] - 0.02
    sane = min(dice["xlstm_enc"], dice["xlstm_bot"]) > 0.7
    verdict(bench, "xlstm-unet 8", "enc >= bot >= residual U-Net - 0.01 each, all > 0.7", rising and sane, **dice)


CHECKS = {
    "transfer": Check(transfer, "3d_fullres", 300),
    "mamba": Check(mamba, "3d_fullres", 300),
    "relevance": Check(relevance, "3d_fullres", 500),
    "networks": Check(networks, "3d_fullres", 500),
}


def arguments(
    checks: Mapping[str, Check], about: str | None, *, seeds: Sequence[int], workspace: str
) -> argparse.ArgumentParser:
    """Return what reads the command line of a script of checks, with its defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(checks), default=list(checks))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(seeds))
    parser.add_argument("--steps", type=int, help="of each run, in place of the check's own number")
    parser.add_argument("--data", type=Path, default=DATA, help="a raw folder of hippocampus MRI")
    parser.add_argument("--workspace", type=Path, default=Path(workspace))
    parser.add_argument("--json", type=Path)
    return parser


def carry_out(checks: Mapping[str, Check], options: argparse.Namespace) -> None:
    """Run the checks asked for."""
    for name in options.only:
        check = checks[name]
        output = options.json and options.json.with_stem(f"{options.json.stem}_{name}")
        data, steps = getattr(options, check.data), options.steps or check.steps
        check.measure(Bench(data, options.workspace, check.configuration, steps, output), options.seeds)


def main() -> None:
    """Run the checks asked for."""
    carry_out(CHECKS, arguments(CHECKS, __doc__, seeds=[0], workspace="autoseg_behaviour").parse_args())


if __name__ == "__main__":
    main()

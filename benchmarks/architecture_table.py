"""The table of all architectures from a campaign of the referee: parameters, operations, step time, memory and Dice.

    python benchmarks/architecture_table.py CAMPAIGN WORKSPACE FLAT_DATASET DEEP_DATASET

CAMPAIGN is the folder of `autoseg benchmark`, WORKSPACE the one that it ran in. Operations are counted anew from the
plans, as the referee counts them, on a CPU. Memory is the traced estimate of a training step at the 3D plan, single
precision. Training seconds are processor seconds over threads, the mean of the seeds. Where a network has several
seeds, Dice is their mean and their range.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tomllib
from pathlib import Path

from autoseg import plugins
from autoseg.planning.memory import trace_training
from autoseg.plans import Plans
from autoseg.storage import read_json
from autoseg.training.costs import count_operations

ROOT = Path(__file__).resolve().parents[1]
# Parameters of the published configuration, counted here and as published; None: no count was published.
PUBLISHED = {
    "plain_unet": (31_196_399, 31_196_399), "residual_encoder_unet": (102_350_575, 102_350_575),
    "unet_plus_plus": (9_041_601, 9_041_601), "stu_net": (58_262_669, 58_262_669), "primus": (146_145_050, 146_145_050),
    "segmamba": (67_362_723, 67.36e6), "xlstm_unet": (43_695_815, 43_697_095), "swin_unetr": (62_187_296, 62_187_296),
    "unet": (31_390_723, 31_390_723), "res_unet": (33_139_267, 33_139_267), "attention_unet": (37.3e6, 37.3e6),
    "att_res_unet": (39_068_871, 39_068_871), "y_net": (6_925_353, 6_925_353), "hiformer": (25_512_115, 25_512_115),
    "mcanet": (4_047_393, 4_047_401), "mpu_net": (21_507_255, 21_507_255), "ms_dual_guided": (103_556_063, 103_556_063),
    "paratranscnn": (245_468_937, 245_468_937), "pct_net": (44_196_826, 44_199_386), "fmunet": (47_332_680, 47_332_680),
    "resunet_plus_plus": (4_062_993, 4_062_993), "u_transformer": (11_677_825, 11_677_825),
    "lightm_unet": (5_015_766, 5_015_766), "msvm_unet": (35_925_513, 35.93e6), "vm_unet": (27_427_561, 27.43e6),
    "d_former": (44_353_344, 44.26e6), "focal_unet": (44_253_868, 44_254_060), "hi_end_mae": (361_234_286, 361_271_150),
    "meddinov3": (110_720_846, 110_720_846), "medvisionllama": (1_165_440, 1_165_440),
    "swin_bob": (62_187_296, 62_187_296), "swin_smt": (170_783_560, 170.78e6), "swin_unet": (41_378_724, 41_378_724),
    "diamant": (10_900_129, None), "transdae": (31_859_465, None),
}  # fmt: skip


def millions(count: float | None) -> str:
    """Return a count in millions, "-" for none."""
    return "-" if count is None else f"{count / 1e6:.2f}"


def dice(rows: list[dict[str, str]]) -> str:
    """Return mean and range of Dice over the finished seeds."""
    found = [float(row["dice"]) for row in rows if row["status"] == "finished"]
    if not found:
        return "failed" if any(row["status"] == "failed" for row in rows) else "not run"
    spread = f" ({min(found):.3f}-{max(found):.3f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}"


def traced(plans_file: Path) -> str:
    """Return the estimate in MiB of the peak memory of a training step at a plan."""
    (planned,) = Plans.read(plans_file).configurations.values()
    kind = plugins.load("architecture", planned.architecture)
    estimate = trace_training(kind, planned.network, planned.batch_size, precision="fp32", optimizer="adamw")
    return f"{estimate.peak / 2**20:.0f}"


def counted(row: dict[str, str], campaign: Path, workspace: Path) -> str:
    """Return the operations of a training step in thousands of millions, counted as the referee does."""
    method = f"{row['architecture']}-{row['trainer']}-{row['recipe']}"
    step, _ = count_operations(
        read_json(campaign / "benchmark.json")["datasets"][row["dataset"]]["reference"],
        row["configuration"],
        trainer=row["trainer"],
        plans_name=f"{campaign.name}-{row['architecture']}",
        architecture=row["architecture"],
        fold=row["fold"],
        recipe=campaign / "recipes" / row["dataset"] / f"{method}.probe.toml",
        device="cpu",
        workspace=workspace,
    )
    return "-" if step is None else f"{step / 1e9:.1f}"


def seconds(rows: list[dict[str, str]]) -> str:
    """Return the processor seconds of training over the threads, the mean of the finished seeds."""
    found = [
        float(row["train_cpu_seconds"]) / int(row["threads"])
        for row in rows
        if row["status"] == "finished" and row["train_cpu_seconds"]
    ]
    return f"{statistics.mean(found):.0f}" if found else "-"


def half(rows: list[dict[str, str]], options: argparse.Namespace, *, memory: bool) -> list[str]:
    """Return the cells of one data set."""
    if not rows:
        return ["-"] * (7 if memory else 6)
    first = next((row for row in rows if row["status"] == "finished"), rows[0])
    plans = f"{options.campaign.name}-{first['architecture']}.json"
    plans_file = options.workspace / "preprocessed" / first["dataset"] / "plans" / plans
    cells = [
        millions(float(first["parameters"])) if first["parameters"] else "-",
        counted(first, options.campaign, options.workspace),
        f"{float(first['step_seconds']):.2f}" if first["step_seconds"] else "-",
        first["steps"] or "-",
        seconds(rows),
    ]
    return [*cells, *([traced(plans_file)] if memory else []), dice(rows)]


def main() -> None:
    """Print one Markdown row per network, in the order of docs/architectures.toml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("campaign", "workspace"):
        parser.add_argument(name, type=Path)
    for name in ("flat", "deep"):
        parser.add_argument(name)
    options = parser.parse_args()
    with (options.campaign / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (ROOT / "docs" / "architectures.toml").open("rb") as file:
        names = [name for name in tomllib.load(file) if name != "families"]
    print(
        "| architecture | parameters, ours / published, M | 3D: M | GFLOP a step | s a step | steps | training s "
        "| traced MiB | Dice 3D | 2D: M | GFLOP a step | s a step | steps | training s | Dice 2D |"
    )
    print("| --- " * 15 + "|")
    for name in names:
        parts = {data: [row for row in rows if (row["dataset"], row["architecture"]) == (data, name)]
                 for data in (options.deep, options.flat)}  # fmt: skip
        ours, published = PUBLISHED.get(name, (None, None))
        entry = next((row["entry"] for part in parts.values() for row in part), name)
        marks = " *" if "own recipe" in entry else ""
        cells = [f"`{name}`{marks}", f"{millions(ours)} / {millions(published)}",
                 *half(parts[options.deep], options, memory=True),
                 *half(parts[options.flat], options, memory=False)]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

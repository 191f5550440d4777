"""UNet++'s pruning experiment: Dice, time and parameters of every depth, and of the average of all heads.

    python benchmarks/pruning.py MODEL IMAGES LABELS

MODEL is a model folder with one unet_plus_plus; IMAGES and LABELS hold cases that it was not trained on, with a
dataset.json in LABELS or beside it. A pruned network leaves out the nodes that its head does not see: parameters are
those of the smaller network, seconds the median CPU time of `predict_array` per case, reading and writing left out.
The deepest `prune:` is the network's last head.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import autoseg
from autoseg.raw import list_prediction_cases, read_image


def needed(network) -> int:
    """Return the parameters of the nodes, up-samplings and head that prediction uses."""
    count = sum(parameter.numel() for parameter in network.heads[str(network.depth)].parameters())
    for part in (network.nodes, network.ups):
        for name, module in part.items():
            if sum(map(int, name.split("_"))) <= network.depth:
                count += sum(parameter.numel() for parameter in module.parameters())
    return count


def seconds_per_case(predictor: autoseg.Predictor, images: Path) -> float:
    """Return the median CPU seconds that the arrays of a case take."""
    channels, spent = len(predictor.model.channel_names), []
    for case in list_prediction_cases(images, channels=channels, file_ending=predictor.model.file_ending):
        image = read_image(case.images, channels=channels)
        started = time.process_time()
        predictor.predict_array(image.data, image.geometry.spacing)
        spent.append(time.process_time() - started)
    return statistics.median(spent)


def score(model: Path, images: Path, labels: Path, inference: str) -> dict:
    """Predict and evaluate with one value of the option "inference"."""
    predictor = autoseg.Predictor.load(model, network_options={"inference": inference})
    with tempfile.TemporaryDirectory() as folder:
        predictor.predict_folder(images, folder)
        found = autoseg.evaluate(folder, labels)
    network = predictor.members[0].networks[0]
    return {
        "inference": inference,
        "dice": round(found.foreground_mean["dice"], 4),
        "CPU seconds per case": round(seconds_per_case(predictor, images), 3),
        "parameters": needed(network),
    }


def main() -> None:
    """Score every depth of the model's network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    options = parser.parse_args()
    depths = autoseg.Predictor.load(options.model).members[0].networks[0].columns
    for inference in (*(f"prune:{depth}" for depth in depths), "average"):
        print(json.dumps(score(options.model, options.images, options.labels, inference)), flush=True)


if __name__ == "__main__":
    main()

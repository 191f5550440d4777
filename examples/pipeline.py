"""Every stage from Python, on the bundled data: python examples/pipeline.py [WORKSPACE]."""

import sys

import autoseg
from autoseg.demo import copy_dataset


def main(folder: str = "autoseg_workspace") -> None:
    """Train one short fold and say what it reached."""
    workspace = autoseg.Workspace.open(folder)
    dataset = autoseg.open_dataset(copy_dataset(workspace), workspace)
    fingerprint = autoseg.fingerprint(dataset, workspace)
    plans = autoseg.plan(dataset, fingerprint, workspace, configurations=["3d_fullres"], time_budget=120)
    autoseg.preprocess(dataset, plans, workspace)
    autoseg.train(dataset.name, "3d_fullres", "0", time_budget=24, workspace=workspace)
    model = autoseg.find_best(dataset.name, workspace)
    predictor = autoseg.Predictor.load(model)
    predictor.predict_folder(dataset.folder / "imagesTs", workspace.results / dataset.name / "unseen")
    scores = autoseg.evaluate(
        workspace.results / dataset.name / "unseen",
        dataset.folder / "labelsTs",
        dataset_json=dataset.folder / "dataset.json",
    )
    print({name: round(values["dice"], 3) for name, values in scores.mean.items()})
    print(autoseg.report(dataset.name, workspace))


if __name__ == "__main__":
    main(*sys.argv[1:2])

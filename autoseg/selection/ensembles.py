"""Scores ensembles by streaming: predict a validation case with every configuration, average, score, drop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoseg.devices import choose_device, prepare_to_compute
from autoseg.errors import UserError
from autoseg.evaluation import evaluate_case
from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans
from autoseg.selection.components import ComponentTable, component_table, value_sets
from autoseg.selection.references import Reference
from autoseg.selection.runs import Experiment, Run
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass
class PairResult:
    """The scores and component tables of one ensemble, by case."""

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, ComponentTable] = field(default_factory=dict)


class FoldPredictor:
    """Predicts validation cases with the network of the fold that did not see them, from the preprocessed store."""

    def __init__(self, experiment: Experiment, dataset_name: str, workspace: Workspace, *, device: str):
        self.experiment = experiment
        self.plans: Plans = experiment.plans
        self.configuration: Configuration = self.plans.configuration(experiment.configuration)
        self._store = CaseStore(workspace.store_folder(dataset_name, self.configuration.data_identifier), cache=False)
        self._workspace = workspace
        self._device = choose_device(device)
        prepare_to_compute(self._device)
        self._loaded: Run | None = None
        self._network: Any = None

    def predict(self, case: str) -> Any:
        """Return the logits of a case as inference's `Resampled`, ready for the original grid.

        Tiles stand as in the run's own validation, so that ensembles and single configurations are compared alike.
        """
        import torch

        from autoseg.inference import Resampled, predict_preprocessed

        run = self.experiment.run_of_case[case]
        stored = self._store.read(case)
        name = run.previous_stage
        logits = predict_preprocessed(
            [self._network_of(run)],
            torch.from_numpy(np.ascontiguousarray(stored.image())),
            self.configuration,
            mirror_axes=run.mirror_axes,
            device=self._device,
            step_size=run.step_size,
            previous_label=None if name is None else stored.previous_stage(name=name),
        )
        return Resampled(logits, stored.properties, self.plans, self.configuration)

    def _network_of(self, run: Run) -> Any:
        if self._loaded is not run:
            self._network = None  # the fold before leaves the memory first
            self._network = _load(run, self.configuration, self._workspace).to(self._device)
            self._loaded = run
        return self._network


def _load(run: Run, configuration: Configuration, workspace: Workspace) -> Any:
    from autoseg.plugins import build_network
    from autoseg.training.checkpoint import load_weights

    network = build_network(configuration.architecture, configuration.network, workspace.root)
    try:
        network.load_state_dict(load_weights(run.weights))
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit architecture {configuration.architecture!r}: {str(error)[:300]}",
            where=run.weights,
            mend="a trainer that predicts with a network of its own cannot be in an ensemble: choose without ensembles",
        ) from None
    return network.eval()


def score_pairs(
    pairs: Sequence[tuple[int, int]],
    experiments: Sequence[Experiment],
    references: Mapping[str, Reference],
    *,
    labels: Labels,
    dataset_name: str,
    workspace: Workspace,
    device: str,
) -> list[PairResult]:
    """Return the result of every pair of experiments on the cases of `references`.

    Every experiment predicts a case once, however many pairs it is in; nothing is stored.
    """
    from autoseg.inference import label_map

    used = sorted({index for pair in pairs for index in pair})
    predictors = {i: FoldPredictor(experiments[i], dataset_name, workspace, device=device) for i in used}
    results = [PairResult() for _ in pairs]
    groups = value_sets(labels)
    # Cases of one fold stand together, so that every network is loaded once.
    ordered = sorted(references, key=lambda case: [experiments[i].run_of_case[case].fold for i in used])
    for number, case in enumerate(ordered, 1):
        members = {index: predictors[index].predict(case) for index in used}
        reference, spacing = references[case].read(labels)
        for result, pair in zip(results, pairs, strict=True):
            label = label_map([members[index] for index in pair], labels)
            scores = evaluate_case(
                label, reference, labels=labels, spacing=spacing, surface=False, annotated=references[case].annotated
            )
            result.scores[case] = {name: found.as_dict() for name, found in scores.items()}
            result.tables[case] = component_table(label, reference, labels=labels, groups=groups)
        log.info("ensembles: case %s (%d of %d)", case, number, len(ordered))
    return results

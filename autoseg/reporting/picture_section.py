"""The section with pictures of the best, the median and the worst validation case."""

from __future__ import annotations

import logging
from typing import Any

from autoseg.errors import UserError
from autoseg.raw import read_image, read_label
from autoseg.reporting.markup import missing, note, section, text
from autoseg.reporting.material import ExperimentMaterial, Material
from autoseg.reporting.pictures import contour_picture, largest_slice, plain_picture

log = logging.getLogger(__name__)

_LEGEND = (
    '<div class="legend"><span><svg viewBox="0 0 18 10"><path class="reference" d="M0,5 18,5"/></svg>reference</span>'
    '<span><svg viewBox="0 0 18 10"><path class="prediction" d="M0,5 18,5"/></svg>prediction</span></div>'
)


def picture_section(material: Material) -> str:
    """Return the pictures, or why there are none."""
    experiment = material.best_experiment
    if experiment is None or material.dataset is None:
        what = "Pictures need the raw images and at least one finished fold with its validation label maps."
        return section("pictures", "Cases in pictures", missing(what))
    means = _case_means(experiment)
    pictures = []
    for title, case in _choose(means).items():
        try:
            pictures.append(_picture(material, experiment, case, f"{title}: {case}", means[case]))
        except UserError as error:
            pictures.append(f"<div>{missing(f'{title}, {case}: {error}')}</div>")
    if not pictures:
        return section("pictures", "Cases in pictures", missing("No validation case has a defined Dice."))
    explanation = note(
        f"{experiment.configuration}: for each case the plane with most foreground, cut around it; left the image, "
        "right with contours. Before post-processing."
    )
    content = f'{explanation}{_LEGEND}<div class="pictures">{"".join(pictures)}</div>'
    return section("pictures", "Best, median and worst case", content)


def _case_means(experiment: ExperimentMaterial) -> dict[str, float]:
    """Return the mean Dice over names of every case that has one, from worst to best."""
    means = {}
    for case, named in experiment.scores.items():
        dice = [scores["dice"] for scores in named.values() if scores.get("dice") is not None]
        if dice:
            means[case] = sum(dice) / len(dice)
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _choose(means: dict[str, float]) -> dict[str, str]:
    """Return title -> case; fewer than three cases give fewer pictures."""
    cases = list(means)
    places = {"Best": len(cases) - 1, "Median": len(cases) // 2, "Worst": 0} if cases else {}
    chosen: dict[str, str] = {}
    for title, place in places.items():
        if cases[place] not in chosen.values():
            chosen[title] = cases[place]
    return chosen


def _picture(material: Material, experiment: ExperimentMaterial, case_id: str, title: str, dice: float) -> str:
    dataset = material.dataset
    assert dataset is not None
    case = next((case for case in dataset.cases if case.id == case_id), None)
    predicted = experiment.label_map(case_id, dataset.file_ending)
    if case is None or case.label is None or predicted is None:
        raise UserError("the image, its label map or the prediction is no longer there")
    channels = len(dataset.channel_names)
    image = read_image(case.images, channels=channels)
    maps = [dataset.labels.to_internal(read_label(path)[0], str(path)) for path in (predicted, case.label)]
    colour = channels == 3 and [name.upper() for name in dataset.channel_names] == ["R", "G", "B"]
    plane = largest_slice(image.data, maps[0], maps[1], image.geometry.spacing, colour=colour)
    caption = f"<b>{text(title)}</b><br>mean Dice {dice:.3f}, {text(plane.position)}"
    drawings: Any = plain_picture(plane, f"{title}, image") + contour_picture(plane, dataset.labels, title)
    return f'<figure><figcaption>{caption}</figcaption><div class="pair">{drawings}</div></figure>'

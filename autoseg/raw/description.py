"""dataset.json in one form: nnU-Net's fields, whatever the file was written for, and every wrong field named."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.labels import Labels, labels_from_description
from autoseg.raw.dataset import safe_name
from autoseg.raw.images import ENDINGS
from autoseg.raw.problems import LONGEST_PATH, Problem, short
from autoseg.storage import read_json


@dataclass
class Description:
    """The parsed fields of a dataset.json; `labels` is None if they are unusable."""

    file: Path
    json: dict[str, Any]  # in nnU-Net's form
    channel_names: tuple[str, ...] = ()
    labels: Labels | None = None
    file_ending: str | None = None
    num_training: int | None = None
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def complain(self, name: str, value: Any, message: str, mend: str = "", severity: str = "error") -> None:
        """Note a problem of one field."""
        text = json.dumps(value, ensure_ascii=False)
        text = text if len(text) <= 60 else text[:57] + "..."
        what = f"{message}, got {text}"
        self.problems.append(Problem(what, str(self.file), field=name, value=text, mend=mend, severity=severity))


def read_description(file: Path, base: dict[str, Any] | None = None) -> Description:
    """Read and check a dataset.json; fields that it lacks are taken from `base`."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError("the file must hold one JSON object", where=file, mend='write {"channel_names": ..., ...}')
    if base:
        if "labels" in content:  # the order belongs to the labels
            base = {name: value for name, value in base.items() if name != "regions_class_order"}
        content = base | content
    return parse_description(content, file)


def parse_description(content: dict[str, Any], file: Path) -> Description:
    """Check every field of a dataset.json of nnU-Net or of the Medical Segmentation Decathlon."""
    description = Description(file=file, json=_nnunet_form(content))
    content = description.json
    _channel_names(description, content.get("channel_names"))
    try:
        description.labels = labels_from_description(content, str(file))
    except UserError as error:
        message = short(error.what, LONGEST_PATH)
        description.problems.append(Problem.of_error(error, field="labels", message=message))
    if "ignore" in content:
        mend = 'write it into labels: {"labels": {"background": 0, "tumour": 1, "ignore": 2}}'
        description.complain("ignore", content["ignore"], "the ignore label belongs inside labels", mend)
    _file_ending(description, content.get("file_ending"))
    count = content.get("numTraining")
    if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
        description.num_training = count
    elif count is not None:
        description.complain("numTraining", count, "it must be the number of training cases", "write an integer")
    name = content.get("labels_folder", "labelsTr")
    if not isinstance(name, str) or not safe_name(name):
        mend = 'write the name of a folder beside imagesTr, such as "scribblesTr"'
        description.complain("labels_folder", content.pop("labels_folder"), "it must be the name of a folder", mend)
    _per_case(description, content)
    return description


def _nnunet_form(content: dict[str, Any]) -> dict[str, Any]:
    """Turn the Decathlon's `modality` and inverted `labels` into nnU-Net's fields."""
    content = dict(content)
    if "channel_names" not in content and "modality" in content:
        content["channel_names"] = content.pop("modality")
    labels = content.get("labels")
    inverted = isinstance(labels, dict) and labels and all(re.fullmatch(r"-?[0-9]{1,9}", key) for key in labels)
    if inverted and all(isinstance(name, str) for name in labels.values()):
        zero = {"background": 0} if "0" in labels else {}
        content["labels"] = zero | {name: int(value) for value, name in labels.items() if value != "0"}
    return content


def _channel_names(description: Description, names: Any) -> None:
    mend = 'write "channel_names": {"0": "MRI"}, one entry per channel, numbered from 0'
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        description.complain("channel_names", names, "it must name the channels", mend)
        return
    keys = [str(index) for index in range(len(names))]
    if sorted(names, key=str) != sorted(keys) or not all(isinstance(name, str) for name in names.values()):
        description.complain("channel_names", names, "it must map 0, 1, ... to names", mend)
        return
    description.channel_names = tuple(names[key] for key in keys)
    description.json["channel_names"] = {key: names[key] for key in keys}


def _file_ending(description: Description, ending: Any) -> None:
    if ending is None:
        return
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        supported = ", ".join(ENDINGS)
        description.complain("file_ending", ending, "it must be a supported ending", f"write one of {supported}")
        return
    description.file_ending = ending


def _per_case(description: Description, content: dict[str, Any]) -> None:
    annotated = content.get("annotated", {})
    if not isinstance(annotated, dict) or not all(_texts(names) for names in annotated.values()):
        description.complain(
            "annotated", annotated, "it must map cases to lists of class names", 'write {"case": ["liver"]}'
        )
    else:
        description.annotated = {case: tuple(names) for case, names in annotated.items()}
        known = set(description.labels.names) if description.labels else None
        for case, names in annotated.items():
            unknown = sorted(set(names) - known) if known is not None else []
            if unknown:
                message = f"class(es) {unknown} are not among the labels {sorted(known)}"
                mend = "use the names under labels"
                description.complain(f"annotated.{short(case)}", names, short(message, LONGEST_PATH), mend)
    groups = content.get("groups", {})
    if not isinstance(groups, dict) or not all(isinstance(group, (str, int)) for group in groups.values()):
        description.complain(
            "groups", groups, "it must map cases to names of groups (patients)", 'write {"case": "patient 7"}'
        )
    else:
        description.groups = {case: str(group) for case, group in groups.items()}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

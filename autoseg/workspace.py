"""Where things are on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import UserError

DATASET_NAME = re.compile(r"Dataset(\d{3,})_(.+)")


@dataclass(frozen=True)
class Workspace:
    """The three folders of a workspace: raw, preprocessed, results."""

    raw: Path
    preprocessed: Path
    results: Path
    root: Path

    @classmethod
    def open(cls, path: str | Path | None = None) -> Workspace:
        """Return the workspace at `path`, else AUTOSEG_WORKSPACE, else by nnU-Net's variables, else the default."""
        if path is None:
            path = os.environ.get("AUTOSEG_WORKSPACE") or None
        root = Path(path if path is not None else "autoseg_workspace")
        folders = {"raw": root / "raw", "preprocessed": root / "preprocessed", "results": root / "results"}
        if path is None:
            for name in folders:
                if os.environ.get(f"nnUNet_{name}"):
                    folders[name] = Path(os.environ[f"nnUNet_{name}"])
        return cls(root=root, **folders)

    def find_dataset(self, reference: str | Path) -> Path:
        """Return the folder or list file of a data set given by path, name, or number (`4`, `004`, `Dataset004_X`)."""
        path = Path(reference)
        if path.exists():
            return path
        text = str(reference)
        folders = sorted(folder for folder in self.raw.glob("Dataset*") if folder.is_dir())
        hits = [folder for folder in folders if _is_called(folder.name, text)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise UserError(
                f"{text!r} fits several data sets: {', '.join(hit.name for hit in hits)}",
                where=self.raw,
                mend="give the whole name of one of them",
            )
        known = ", ".join(folder.name for folder in folders) or "none"
        mend = "give the path of a data set folder or case list, or a name or number in the workspace"
        elsewhere = [folder.name for folder in sorted(self.preprocessed.glob("*")) if _is_called(folder.name, text)]
        if elsewhere:
            mend = f"{elsewhere[0]} is preprocessed, but its raw data are not in this workspace: give their path"
        raise UserError(f"no data set {text!r}; known in {self.raw}: {known}", mend=mend)

    def find_model(self, reference: str | Path) -> Path:
        """Return the model folder of a data set given as `find_dataset` takes it; raw data need not be there."""
        path = Path(reference).resolve()
        text = str(reference) if not path.exists() else path.name if path.is_dir() else path.stem
        hits = [path.parent for path in sorted(self.results.glob("*/model")) if _is_called(path.parent.name, text)]
        if len(hits) == 1:
            return self.model_folder(hits[0].name)
        known = ", ".join(path.parent.name for path in sorted(self.results.glob("*/model"))) or "none"
        raise UserError(
            f"{len(hits) or 'no'} selected models fit {text!r}; data sets with a model: {known}",
            where=self.results,
            mend="call `autoseg find-best DATASET` first, or give a model folder; results of nnU-Net become one by "
            "`autoseg import-nnunet FOLDER`",
        )

    def preprocessed_folder(self, dataset_name: str) -> Path:
        """Return the folder of fingerprint, plans, splits and stores of a data set."""
        return self.preprocessed / dataset_name

    def plans_file(self, dataset_name: str, plans_name: str) -> Path:
        """Return the plans file of a data set."""
        return self.preprocessed_folder(dataset_name) / "plans" / f"{plans_name}.json"

    def store_folder(self, dataset_name: str, data_identifier: str) -> Path:
        """Return the folder of one preprocessed store."""
        return self.preprocessed_folder(dataset_name) / data_identifier

    def experiment_folder(self, dataset_name: str, trainer: str, plans_name: str, configuration: str) -> Path:
        """Return the folder that holds the folds of one trainer, plans and configuration."""
        return self.results / dataset_name / f"{trainer}__{plans_name}__{configuration}"

    def run_folder(self, dataset_name: str, trainer: str, plans_name: str, configuration: str, fold: int | str) -> Path:
        """Return the folder of one run (one fold)."""
        return self.experiment_folder(dataset_name, trainer, plans_name, configuration) / f"fold_{fold}"

    def model_folder(self, dataset_name: str) -> Path:
        """Return the folder of the selected, self-contained model."""
        return self.results / dataset_name / "model"


def _is_called(folder_name: str, text: str) -> bool:
    """Tell whether `text` is the whole name, the number, or the name without the number of a data set folder."""
    match = DATASET_NAME.fullmatch(folder_name)
    if match is None or text == folder_name:
        return text == folder_name
    by_number = text.isdecimal() and int(match.group(1)) == int(text)
    return by_number or match.group(2) == text

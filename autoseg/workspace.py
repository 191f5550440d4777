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
        """Return the workspace at `path`, else AUTOSEG_WORKSPACE, else nnU-Net's variables, else ./autoseg_workspace."""
        if path is None and "AUTOSEG_WORKSPACE" in os.environ:
            path = os.environ["AUTOSEG_WORKSPACE"]
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
        for folder in folders:
            match = DATASET_NAME.fullmatch(folder.name)
            by_number = match and text.isdigit() and int(match.group(1)) == int(text)
            if by_number or folder.name == text or (match and match.group(2) == text):
                return folder
        # A data set that came as a list file or from elsewhere is known by what was made of it.
        known = ", ".join(folder.name for folder in folders) or "none"
        raise UserError(
            f"no data set {text!r}; known in {self.raw}: {known}",
            mend="give the path of a data set folder or case list, or a name or number in the workspace",
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

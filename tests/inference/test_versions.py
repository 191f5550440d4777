"""A model that was made with other versions says so."""

import logging

import torch
from model_factory import write_model

import autoseg
from autoseg.inference import Predictor
from autoseg.inference.versions import tell_other_versions
from autoseg.model_folder import MODEL_FILE, read_model
from autoseg.storage import write_json


def test_other_versions_are_told_when_a_model_is_loaded(tmp_path, caplog):
    folder = write_model(tmp_path / "model")
    model = read_model(folder).model_copy(update={"versions": {"torch": "2.3.4+cu118", "python": "2.7.18"}})
    write_json(folder / MODEL_FILE, model.model_dump(mode="json"))
    with caplog.at_level(logging.INFO):
        Predictor.load(folder, device="cpu")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "autoseg.inference.versions"]
    assert said == (
        f"the model was made with torch 2.3.4+cu118, here it is {torch.__version__}; "
        "predictions may differ in the last digits"
    )


def test_the_same_version_for_another_device_is_no_other(caplog):
    plain = torch.__version__.partition("+")[0]
    with caplog.at_level(logging.INFO):
        tell_other_versions({"torch": f"{plain}+cu999", "autoseg": autoseg.__version__})
        tell_other_versions({})
    assert caplog.messages == []

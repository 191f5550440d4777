"""Model folders with randomly initialised tiny networks, as selection would write them."""

import pytest
from model_factory import edit_model, write_model


@pytest.fixture
def model_writer():
    return write_model


@pytest.fixture
def model_editor():
    return edit_model

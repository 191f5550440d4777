"""A message is told once."""

from autoseg.architectures.blocks.telling import tell


def test_a_message_is_told_once_to_its_logger(caplog):
    caplog.set_level("INFO")
    for message in ("a skip is averaged", "another skip is averaged", "a skip is averaged"):
        tell("test_telling", message)
    assert caplog.record_tuples == [
        ("test_telling", 20, "a skip is averaged"), ("test_telling", 20, "another skip is averaged"),
    ]  # fmt: skip

"""Atomic artefacts and content hashes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.storage import (
    SEAL,
    atomic_path,
    content_hash,
    file_hash,
    file_stamp,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_atomic_path_keeps_the_suffix_and_replaces(tmp_path):
    target = tmp_path / "new" / "case.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == target.parent
        temporary.write_bytes(b"one")
        assert not target.exists()
    assert target.read_bytes() == b"one"
    write_text(target, "zwei ä")
    assert target.read_text(encoding="utf-8") == "zwei ä"
    assert list(target.parent.iterdir()) == [target]


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"{half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert read_json(target) == {"old": 1}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_kill_9_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from autoseg.storage import atomic_path
        with atomic_path(Path({str(target)!r})) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(target) == {"old": 1}


def test_leftovers_of_killed_processes_go_after_an_hour(tmp_path):
    old, new, folder, other = (tmp_path / name for name in (".writing-a-x", ".writing-b-x", ".replaced-c", ".git"))
    for path in (old, new, other):
        path.write_text("half")
    (folder / "model").mkdir(parents=True)
    for path in (old, folder, other):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3700))
    remove_leftovers(tmp_path, tmp_path / "absent")
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


@given(content=JSON)
def test_json_round_trip(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, content)
    assert read_json(path) == content


def test_numpy_paths_and_sets_become_plain(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": np.float32(0.5), "b": np.arange(3), "c": (1, 2), "d": {3, 1}, "e": Path("x") / "y"})
    assert read_json(path) == {"a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": [1, 3], "e": str(Path("x") / "y")}
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        write_json(path, object())
    assert read_json(path)["a"] == 0.5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_broken_json_is_a_user_error_with_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.json: not valid JSON"):
        read_json(path)


@settings(deadline=None, derandomize=True)
@given(content=st.dictionaries(st.text(), JSON, max_size=4), draw=st.randoms())
def test_a_flipped_bit_of_a_sealed_file_is_told_or_changes_nothing(tmp_path_factory, content, draw):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    write_json(path, content, sealed=True)
    assert read_json(path) == content
    changed = bytearray(path.read_bytes())
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    with contextlib.suppress(UserError):
        assert read_json(path) == content


def test_half_a_character_is_no_crash(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": "\\ud800", "autoseg_checksum": "x"}')
    with pytest.raises(UserError, match=r"a\.json: the text \\ud800 is half a character"):
        read_json(path)
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"a": 1, "b": {"x": 1, "y": 2, "x": 1}}', "'x'"),
        ('{"labels": {}, "labels": {}}', "'labels'"),
        ('{"\\ud800": 1, "\\ud800": 1}', r"'\\ud800'"),
        ("{" + ", ".join(['"' + "l" * 5000 + '": 1'] * 2) + "}", r"'l{80}\.\.\.'"),
    ],
)
def test_a_name_that_stands_twice_is_told(tmp_path, text, name):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a\.json: the name {name} stands twice in one object"):
        read_json(path)


def test_a_sealed_file_may_be_laid_out_anew_and_unsealed(tmp_path, caplog):
    path = tmp_path / "a.json"
    write_json(path, {"b": (1.5, None), "a": {2: "ä"}}, sealed=True)
    values = {"b": [1.5, None], "a": {"2": "ä"}}
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == [SEAL, "b", "a"]
    path.write_text(json.dumps(content, sort_keys=True, indent=4))
    assert read_json(path) == values
    path.write_text(json.dumps(content | {"b": 2}))
    with pytest.raises(
        UserError, match=rf"a\.json: the content does not match its checksum\n.*delete its line '{SEAL}'"
    ):
        read_json(path)
    assert not caplog.records
    assert read_json(path, editable=True) == values | {"b": 2}
    assert "does not match its checksum" in caplog.text
    caplog.clear()
    del content[SEAL]
    path.write_text(json.dumps(content | {"b": 2}))
    assert read_json(path) == values | {"b": 2}
    assert not caplog.records


def test_missing_or_unreadable_json_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: the file does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_content_hash_is_the_same_in_every_process_and_order():
    here = content_hash({"b": 1, "a": (1, 2)}, np.int64(3))
    assert here == content_hash({"a": [1, 2], "b": 1}, 3)
    assert here != content_hash({"a": [2, 1], "b": 1}, 3)
    code = "from autoseg.storage import content_hash; print(content_hash({'b': 1, 'a': [1, 2]}, 3))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()
    assert here == there


def test_file_identity(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    name, size, changed = file_stamp(path)
    assert (name, size) == ("a", 3)
    os.utime(path, ns=(changed + 10**9, changed + 10**9))
    assert file_stamp(path) != [name, size, changed]

"""Measuring of commands with their descendants, and answers of children."""

import os
import sys

import pytest
from sides.measuring import CommandFailed, descendants, parse_answer, resident_bytes, run_measured, tree_memory

PAGE = os.sysconf("SC_PAGE_SIZE")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the accounts are those of Linux")


def peak_of(child):
    """Run the text of a program; returns the bytes of its processes together."""
    return run_measured([sys.executable, "-c", child], os.environ, timeout=60)[0].tree_bytes


def test_last_answer_among_other_lines():
    assert parse_answer('hello\nANSWER {"a": 1}\nmore\nANSWER {"a": 2}\nbye\n') == {"a": 2}


@pytest.mark.parametrize("text", ["", "no answer", " ANSWER {}", "ANSWER {", "ANSWER [1]"])
def test_no_usable_answer(text):
    with pytest.raises(CommandFailed):
        parse_answer(text)


def fake_process(proc, pid, *, threads=None, pages=0, anonymous=0, shared=0, files=0):
    """A folder like those of /proc; `threads`: children by thread; memory in KiB."""
    for thread, children in (threads or {pid: []}).items():
        folder = proc / str(pid) / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "children").write_text("".join(f"{child} " for child in children))
    (proc / str(pid) / "statm").write_text(f"{10 * pages} {pages} 0 0 0 0 0\n")
    (proc / str(pid) / "status").write_text(f"Name:\tpython\nPid:\t{pid}\nRssFile:\t   {files} kB\n")
    (proc / str(pid) / "smaps_rollup").write_text(
        f"00-ff ---p 00000000 00:00 0  [rollup]\nRss: 999 kB\nPss: 99 kB\nPss_Anon:   {anonymous} kB\n"
        f"Pss_File:  5 kB\nPss_Shmem: {shared} kB\n"
    )


def test_tree_of_processes(tmp_path):
    fake_process(tmp_path, 1, threads={1: [2], 7: [3]}, pages=5, anonymous=100, files=30)
    fake_process(tmp_path, 2, threads={2: [4]}, pages=7, anonymous=10, shared=4, files=50)
    fake_process(tmp_path, 3, pages=11)
    fake_process(tmp_path, 9, pages=1000, anonymous=7000)
    assert sorted(descendants(1, tmp_path)) == [1, 2, 3, 4]  # 4 has ended meanwhile
    assert resident_bytes([1, 2, 3, 4], tmp_path) == 23 * PAGE
    assert tree_memory([1, 2, 3, 4], tmp_path) == (100 + 10 + 4 + 50) * 1024


@linux
def test_descendants_count():
    """A grandchild whose parent ends first: its processor time and its memory are in the accounts."""
    grandchild = (
        "import time; x = bytearray(80_000_000); t = time.process_time()\nwhile time.process_time() < t + .3: 0"
    )
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); print('left')"
    usage, text = run_measured([sys.executable, "-c", child], os.environ, timeout=60)
    assert text == "left\n"
    assert usage.cpu_seconds > 0.3
    assert usage.largest_bytes > 80e6
    assert usage.tree_bytes > 60e6


@linux
def test_pages_that_forked_children_share_hide_no_later_peak():
    """Eight children share 60 MB, which counts once; later the parent alone takes 150 MB more."""
    child = (
        "import os, time\n"
        "def forked():\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        time.sleep(0.5)\n"
        "        os._exit(0)\n"
        "    return pid\n"
        "x = bytearray(b'1') * 60_000_000\n"
        "for pid in [forked() for _ in range(8)]:\n"
        "    os.waitpid(pid, 0)\n"
        "y = bytearray(b'1') * 150_000_000\n"
        "time.sleep(1.0)\n"
    )
    assert 210e6 < peak_of(child) < 300e6


@linux
def test_a_short_peak_of_one_process_is_seen():
    child = (
        "import time\n"
        "x = bytearray(b'1') * 300_000_000\n"
        "time.sleep(0.12)\n"
        "y = bytearray(b'1') * 200_000_000\n"
        "time.sleep(0.2)\n"
        "del y\n"
        "time.sleep(0.3)\n"
    )
    assert peak_of(child) > 500e6


@linux
def test_failure_shows_what_was_said():
    with pytest.raises(CommandFailed, match=r"exit code 3(.|\n)*no luck"):
        run_measured([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"], os.environ, timeout=60)
    with pytest.raises(CommandFailed, match="after 1 s"):
        run_measured([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, timeout=1)

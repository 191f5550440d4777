"""A part as a process with an end: its answer so far counts, whether it ends by itself or is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_parts.parts import Part

TAIL = 1500  # characters of what a part printed that are told where it failed


class Child:
    """A part that runs; `end` is the time.monotonic() at which it is to be stopped."""

    def __init__(self, part: Part, work: Path, environment: dict[str, str], *, rehearse: bool, end: float):
        self.part, self.began = part, time.monotonic()
        self.end = min(end, self.began + part.seconds)
        stem = part.name.replace(" ", "_")
        self._answer, self._log = work / f"{stem}.json", work / f"{stem}.log"
        command = [sys.executable, "-m", "gpu_parts.child", part.name, str(work), str(self._answer)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *(["--rehearse"] if rehearse else [])], env=environment, cwd=work, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether the process has ended or its time is over."""
        return self._process.poll() is not None or time.monotonic() >= self.end

    def result(self) -> dict[str, Any]:
        """Return what the part has found out; stops it where it still runs."""
        stopped = self._process.poll() is None
        code = self.stop()
        answer: dict[str, Any] = {}
        with contextlib.suppress(OSError, json.JSONDecodeError):
            answer = json.loads(self._answer.read_text(encoding="utf-8"))
        if stopped:
            answer["stopped"] = f"after {time.monotonic() - self.began:.0f} s"
        elif code and "failed" not in answer:  # it had no time to say so
            answer["failed"] = f"the process ended with code {code}"
        if stopped or code:
            answer["printed"] = self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        return answer

    def stop(self) -> int:
        """End the process and those that it started; returns its exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

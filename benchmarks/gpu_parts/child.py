"""One part in a process of its own: python -m gpu_parts.child PART WORK ANSWER [--rehearse]."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path

from gpu_parts.bench import Bench
from gpu_parts.parts import PARTS


def main() -> int:
    """Run the part; returns 1 if it failed, which its answer tells, too."""
    name, work, answer, *flags = sys.argv[1:]
    (part,) = (part for part in PARTS if part.name == name)
    began = time.monotonic()
    bench = Bench(Path(work), Path(answer), rehearse="--rehearse" in flags)
    bench.keep_warnings()
    try:
        importlib.import_module(f"gpu_parts.{part.module}").measure(bench, **part.arguments)
    except Exception as error:
        traceback.print_exc()
        bench.tell(failed=f"{type(error).__name__}: {error}"[:500])
        return 1
    bench.tell(took_seconds=round(time.monotonic() - began, 1), complete=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

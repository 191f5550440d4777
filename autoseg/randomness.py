"""Counter-based randomness: every number is a function of (seed, stream, step, sample), never of a worker."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, stream: str, step: int = 0, sample: int = 0) -> np.random.Generator:
    """Return the generator of one sample of one step of a named stream.

    Two calls with the same arguments give the same numbers in any process, so results do not depend on the number
    of workers, and a resumed run continues as if never stopped. Source: Salmon et al. 2011 (Philox).
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    # The lowest counter word is left to Philox itself: it advances while numbers are drawn.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, sample, step, 0]))


def seed_for(seed: int, stream: str, step: int = 0, sample: int = 0) -> int:
    """Return a 63-bit seed for a generator of another library, keyed like `generator`."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

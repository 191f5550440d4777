"""Counter-based randomness: a function of its key, nothing else."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoseg.randomness import generator, seed_for

KEYS = st.tuples(st.integers(0, 2**31), st.text(max_size=8), st.integers(0, 2**40), st.integers(0, 2**20))


@given(key=KEYS)
def test_same_key_same_numbers(key):
    assert np.array_equal(generator(*key).integers(0, 2**63, 5), generator(*key).integers(0, 2**63, 5))
    assert seed_for(*key) == seed_for(*key)
    assert 0 <= seed_for(*key) < 2**63


@given(one=KEYS, other=KEYS)
def test_other_key_other_numbers(one, other):
    same = one == other
    assert np.array_equal(generator(*one).random(4), generator(*other).random(4)) == same
    assert (seed_for(*one) == seed_for(*other)) == same


def test_order_of_use_and_process_do_not_matter():
    first = [generator(0, "train", step, sample).random() for step in range(3) for sample in range(2)]
    backwards = [generator(0, "train", step, sample).random() for step in (2, 1, 0) for sample in (1, 0)][::-1]
    assert first == backwards
    code = "from autoseg.randomness import generator; print(repr(float(generator(0, 'train', 2, 1).random())))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(there) == first[-1]


def test_neighbouring_samples_do_not_share_their_numbers():
    """Drawing many numbers for one sample must not run into the next sample or step."""
    long = generator(0, "s", 5, 0).random(10_000)
    for step, sample in ((5, 1), (6, 0)):
        assert not np.isin(generator(0, "s", step, sample).random(100), long).any()


def test_numbers_are_uniform_over_steps():
    draws = np.array([generator(1, "uniform", step).random() for step in range(4000)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 33.7  # 99.99 % quantile with 9 degrees of freedom
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.06

"""The seed of a fault test's chance."""

import os
import random

import pytest


@pytest.fixture
def seed() -> int:
    """Printed when the test fails; FLUEMAN_FAULT_SEED sets it."""
    seed = int(os.environ.get("FLUEMAN_FAULT_SEED", random.randrange(2**32)))
    print(f"FLUEMAN_FAULT_SEED={seed}")
    return seed

"""What every test shares: one torch thread, one seed, and hypothesis without a deadline."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# A capture takes seconds the first time and milliseconds after: a deadline would only measure the machine.
settings.register_profile("ecospa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ecospa")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

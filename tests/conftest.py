"""What every test shares: one thread, no display, and the two hypothesis profiles."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("normal", max_examples=50, derandomize=True, **_SHARED)  # the nightly ones draw anew
settings.register_profile("nightly", max_examples=500, **_SHARED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))

"""Arrays of a few small images, and what a refusal must look like."""

import numpy as np
import pytest
import torch

from topiarist.errors import TopiaristError


def arrays(n: int = 12, shape: tuple[int, ...] = (6, 5), dtype: type = np.uint8) -> dict[str, np.ndarray]:
    """Random images with labels 0, 1, 2, 0, 1, 2 ..."""
    random = np.random.default_rng(0)
    parts = {}
    for split, size in (("train", n), ("test", 6)):
        parts[f"{split}_x"] = random.integers(0, 256, (size, *shape)).astype(dtype)
        parts[f"{split}_y"] = np.arange(size) % 3
    return parts


def tensors(n: int = 12, shape: tuple[int, ...] = (1, 6, 5)) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays(n, shape).items()}


def refusal(make, *args, **options) -> str:
    with pytest.raises(TopiaristError) as caught:
        list(make(*args, **options))  # generators refuse when they are asked
    text = str(caught.value)
    assert "\n" not in text
    assert text[-1] != "."
    return text

"""What data give: batches, subsets, splits, normalisation, augmentation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from small_data import refusal, tensors
from topiarist.data import Data, augment


def test_normalisation_comes_from_the_training_images():
    for parts in (tensors(200, (3, 4, 4)), {k: v.float() if v.ndim == 4 else v for k, v in tensors(200).items()}):
        data = Data.of("set", **parts)
        x = data.normalise(data.train_x)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(x.shape[1]))
        assert torch.equal(data.example(5), x[:5])


def test_what_is_held_out_is_what_a_split_puts_aside():
    data = Data.of("set", **tensors(60))
    rest, held = data.split(0.2, seed=3), data.held_out(0.2, seed=3)
    assert torch.equal(held.train_x, rest.test_x)
    assert torch.equal(held.train_y, rest.test_y)
    assert len(held.train_y) + len(rest.train_y) == 60
    assert torch.equal(held.test_x, data.test_x)
    assert (held.mean, held.std) == (data.mean, data.std)
    assert "validation split" in refusal(data.held_out, 1.5)


def test_bytes_are_normalised_as_parts_of_255():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    data = Data.of("two", x, torch.tensor([0, 1]), x, torch.tensor([0, 1]))
    assert data.mean == (0.5,)
    assert data.std == (0.5,)
    assert data.normalise(x).flatten().tolist() == [-1, 1]


def test_a_constant_channel_is_only_centred():
    parts = tensors()
    parts["train_x"][:] = 51
    data = Data.of("flat", **parts)
    assert data.std == (1.0,)
    assert data.normalise(data.train_x).abs().max() < 1e-6


@given(n=st.integers(3, 40), batch_size=st.integers(1, 45), shuffled=st.booleans())
def test_batches_hold_every_example_once(n, batch_size, shuffled):
    parts = tensors(n)
    parts["train_x"] = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 6, 5)
    parts["test_x"] = parts["test_x"].float()
    data = Data.of("set", **parts)
    generator = torch.Generator().manual_seed(n) if shuffled else None
    batches = list(data.batches("train", batch_size, generator))
    pixels = torch.cat([x[:, 0, 0, 0] for x, _ in batches])
    values = (pixels * data.std[0] + data.mean[0]).round().long()
    assert sorted(values.tolist()) == list(range(n))
    assert torch.equal(torch.cat([y for _, y in batches]), values % 3)
    if not shuffled:
        assert values.tolist() == list(range(n))
    sizes = [len(y) for _, y in batches]
    assert max(sizes) <= batch_size + 1
    assert batch_size == 1 or min(sizes) > 1
    assert all(size == batch_size for size in sizes[:-1])


def test_the_generator_decides_order_and_augmentation():
    data = Data.of("set", **tensors(30, (3, 8, 8)), augment="crop-flip")

    def epoch(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([x for x, _ in data.batches("train", 7, generator, augmented=True)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    (x, y), *_ = data.batches("test", 100, device="cpu")
    assert torch.equal(x, data.normalise(data.test_x))
    assert torch.equal(y, data.test_y)


def test_bad_requests_for_batches():
    data = Data.of("set", **tensors())
    assert "batch size is 0" in refusal(data.batches, "train", 0)
    assert "no split 'valid'" in refusal(data.batches, "valid", 4)


@given(n=st.integers(1, 60), seed=st.integers(0, 5))
def test_subsets_keep_the_shares_of_the_classes(n, seed):
    data = Data.of("set", **tensors(60))
    part = data.subset(n, seed)
    assert len(part.train_x) == len(part.train_y) == n
    assert (torch.bincount(part.train_y, minlength=3) - n / 3).abs().max() <= 1
    assert torch.equal(part.train_y, data.subset(n, seed).train_y)
    assert part.mean == data.mean
    assert part.test_x is data.test_x


def test_a_validation_split_takes_from_the_training_examples_only():
    parts = tensors(30)
    parts["train_x"] = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 1, 6, 5)
    data = Data.of("set", **parts)
    held = data.split(0.2, seed=3)
    kept, out = held.train_x[:, 0, 0, 0].tolist(), held.test_x[:, 0, 0, 0].tolist()
    assert len(out) == 6
    assert sorted(kept + out) == list(range(30))
    assert torch.bincount(held.test_y).tolist() == [2, 2, 2]
    assert (held.test_x[:, 0, 0, 0].long() % 3).tolist() == held.test_y.tolist()
    assert (held.mean, held.std) == (data.mean, data.std)
    for fraction in (0, 1, 0.001, -0.1, float("nan")):
        assert "validation split" in refusal(data.split, fraction)
    assert "take 1 to all" in refusal(data.subset, 31)
    assert "take 1 to all" in refusal(data.subset, 0)


def test_data_checks_itself():
    parts = tensors()
    common = {"classes": 3, "mean": (0.0,), "std": (1.0,)}
    assert "one finite number for each channel" in refusal(Data, "set", **parts, **{**common, "mean": (0.0, 0.0)})
    assert "must be above 0" in refusal(Data, "set", **parts, **{**common, "std": (0.0,)})
    assert "labels count from 0 to 1" in refusal(Data, "set", **parts, **{**common, "classes": 2})
    assert "augment is 'flip'" in refusal(Data, "set", **parts, **common, augment="flip")
    assert "must be uint8 or float32" in refusal(Data.of, "set", **{**parts, "train_x": parts["train_x"].long()})
    assert "must be int64" in refusal(Data.of, "set", **{**parts, "train_y": parts["train_y"].int()})


def test_data_prints_in_one_line():
    text = repr(Data.of("set", **tensors()))
    assert len(text) < 200
    assert "name='set'" in text
    assert Data.of("set", **tensors()).to("cpu").input_shape == (1, 6, 5)


# --- augmentation


def variants(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """Every image that augmentation may make of one image, by plain loops."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
    windows = [
        padded[:, top : top + height, left : left + width] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]
    return windows + [window.flip(2) for window in windows] * flip


@pytest.mark.parametrize(("kind", "flip"), [("crop", False), ("crop-flip", True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_a_random_crop_and_a_mirror(kind, flip, dtype):
    image = torch.arange(1, 2 * 8 * 7 + 1).view(2, 8, 7).to(dtype)
    out = augment(image.expand(400, 2, 8, 7), kind, torch.Generator().manual_seed(0))
    assert out.dtype == dtype
    assert out.is_contiguous()
    possible = torch.stack(variants(image, pad=1, flip=flip))
    hits = (out[:, None] == possible).flatten(2).all(2)
    assert (hits.sum(1) == 1).all()  # each is one of them,
    assert hits.any(0).all()  # and all of them occur


def test_padding_is_four_on_images_of_the_papers():
    ones = torch.ones(500, 1, 32, 32)
    for size in (28, 32):
        out = augment(ones[:, :, :size, :size], "crop", torch.Generator().manual_seed(0))
        lost = size - out[:, 0].amax(1).sum(1)
        assert lost.max() == 4
        assert lost.min() == 0


def test_no_augmentation_and_unknown_ones():
    x = torch.rand(3, 1, 8, 8)
    assert augment(x, None) is x
    assert "no augmentation 'spin'" in refusal(augment, x, "spin")

"""Data: the laws of splits, batches and augmentation, known answers, and one sentence for whatever is damaged."""

import gzip
import io
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from topiarist.data import Data, augment, load_data
from topiarist.errors import TopiaristError
from topiarist.models import import_package


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
    assert text[-1] in ".?"
    return text


@pytest.fixture
def stored(tmp_path):
    """Writes arrays as an npz file and returns the data's name."""

    def write(**changes) -> str:
        parts = {**arrays(), **changes}
        np.savez(tmp_path / "set.npz", **{key: value for key, value in parts.items() if value is not None})
        return f"npz:{tmp_path / 'set.npz'}"

    return write


# --- digits


def test_digits_are_split_by_class_and_seed():
    data = load_data("digits")
    assert data.input_shape == (1, 8, 8)
    assert (len(data.train_x), len(data.test_x), data.classes, data.augment) == (1297, 500, 10, None)
    whole = torch.bincount(torch.cat([data.train_y, data.test_y]))
    assert (torch.bincount(data.test_y) - whole * 500 / 1797).abs().max() <= 1
    same, other = load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(data.test_x, same.test_x)
    assert not torch.equal(data.test_y, other.test_y)
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1


def test_digits_resized():
    data = load_data("digits:28")
    assert data.input_shape == (1, 28, 28)
    assert torch.equal(data.train_y, load_data("digits").train_y)


@pytest.mark.parametrize("spec", ["digits:0", "digits:big", "digits:-8", "digits:100000"])
def test_digits_of_impossible_sizes(spec):
    assert "as in digits:28" in refusal(load_data, spec)


# --- names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar10", "name data as digits"),
        ("digit", "did you mean digits?"),
        ("", "name data as"),
        ("npz:", "name data as"),
        ("digits:", "name data as"),
        ("npz", "name data as"),
        ("digits?size=3", "no option 'size': it takes augment"),
        ("npz:x?root=a", "no option 'root'"),
        ("folder:x?colour=1", "it takes augment, train, size"),
        ("npz:/no/such/file.npz", "There is no file /no/such/file.npz"),
        ("folder:/no/such/folder", "put images into train/CLASS/"),
        ("digits?augment=swirl", "augment is 'swirl'"),
    ],
)
def test_bad_names_are_told_in_a_sentence(spec, message):
    assert message in refusal(load_data, spec)


# --- npz


def test_npz_keeps_bytes_and_takes_every_layout(stored):
    plain = load_data(stored())
    assert plain.input_shape == (1, 6, 5)
    assert plain.train_x.dtype == torch.uint8
    assert plain.augment is None
    assert torch.equal(plain.train_x[:, 0], torch.from_numpy(arrays()["train_x"]))

    colour = arrays(shape=(6, 5, 3))
    data = load_data(stored(**colour))
    assert data.input_shape == (3, 6, 5)
    assert data.augment == "crop-flip"
    assert data.train_x[2, 1, 4, 3] == colour["train_x"][2, 4, 3, 1]
    first = {key: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for key, value in colour.items()}
    assert torch.equal(load_data(stored(**first)).train_x, data.train_x)

    floats = load_data(stored(**arrays(dtype=np.float64)) + "?augment=crop")
    assert floats.train_x.dtype == torch.float32
    assert floats.augment == "crop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_y": None}, "lacks test_y"),
        ({"train_x": None, "test_x": None}, "lacks train_x, test_x"),
        ({"train_y": np.arange(11) % 3}, "one label for each of the 12 images"),
        ({"train_y": np.arange(12) / 3}, "store labels as one whole number"),
        ({"train_y": np.arange(12).reshape(12, 1) % 3}, "store labels as one whole number"),
        ({"train_y": np.arange(12) % 3 - 1}, "label -1"),
        ({"train_y": np.arange(12) % 3 * 2}, "only 3 of the labels 0 to 4"),
        ({"test_y": np.array([0, 1, 2, 3, 0, 1])}, "test_y has the label 3"),
        ({"train_x": np.zeros((12, 6, 5), np.int64)}, "store images as uint8 or float32"),
        ({"train_x": np.zeros((12, 30), np.uint8)}, "store images as"),
        ({"train_x": np.zeros((12, 6, 5, 7), np.uint8)}, "store images as"),
        ({"train_x": np.zeros((12, 7, 5), np.uint8)}, "differ from training images"),
        ({"train_x": np.zeros((0, 6, 5), np.uint8), "train_y": np.zeros(0, int)}, "at least one image"),
        ({"train_x": np.full((12, 6, 5), np.nan)}, "holds NaN or infinite values"),
        ({"train_x": np.full((12, 6, 5), 1e300)}, "holds NaN or infinite values"),
        ({"train_y": np.array([0, 1, 2] * 4, dtype=object)}, "cannot be read"),
        ({"train_x": np.array([{}] * 12)}, "holds Python objects"),
        ({"train_y": np.full(12, 2**64 - 1, np.uint64)}, "label -1"),
    ],
)
def test_npz_of_the_wrong_content(stored, changes, message):
    assert message in refusal(load_data, stored(**changes))


def test_files_that_are_no_npz(tmp_path, stored):
    path = tmp_path / "set.npz"
    stored()
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        assert "write it anew with numpy.savez" in refusal(load_data, f"npz:{path}")
    assert "There is no file" in refusal(load_data, f"npz:{tmp_path}")


def test_an_array_that_lies_about_its_size_takes_no_memory(tmp_path, stored):
    stored(train_x=np.zeros((12, 6, 5), np.uint8))
    path = tmp_path / "set.npz"
    lie = path.read_bytes().replace(b"(12, 6, 5)", b"(1200000000, 60, 50)", 1)
    assert len(lie) != path.stat().st_size  # a longer header: the archive is inconsistent too
    padded = path.read_bytes().replace(b"'shape': (12, 6, 5), }          ", b"'shape': (12000000000, 6, 5), } ", 1)
    for content in (lie, padded):
        path.write_bytes(content)
        assert "cannot be read" in refusal(load_data, f"npz:{path}")


GOOD = io.BytesIO()
np.savez_compressed(GOOD, **arrays(n=6))


@given(st.lists(st.tuples(st.integers(0, len(GOOD.getvalue()) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_files_are_refused_or_read(tmp_path_factory, changes):
    content = bytearray(GOOD.getvalue())
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile and numpy may have a word to say as well
            data = load_data(f"npz:{path}")
    except TopiaristError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(data.train_x) == 6


# --- folders


def picture(path, shade, size=(6, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade).save(path)


def gallery(root, mode="L", shades=(10, 200)):
    for split in ("train", "test"):
        for label, shade in zip(("cat", "dog"), shades, strict=True):
            for number in range(3):
                picture(root / split / label / f"{number}.png", shade, mode=mode)


def test_folders_of_images(tmp_path):
    gallery(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    data = load_data(f"folder:{tmp_path}")
    assert data.input_shape == (1, 5, 6)
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_x[:, 0, 0, 0].tolist() == [10, 10, 10, 200, 200, 200]
    assert load_data(f"folder:{tmp_path}?size=4").input_shape == (1, 4, 4)


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    gallery(tmp_path)
    picture(tmp_path / "test" / "dog" / "colour.png", (1, 2, 3), size=(9, 9), mode="RGB")
    data = load_data(f"folder:{tmp_path}")
    assert data.input_shape == (3, 5, 6)
    assert data.train_x[0, :, 0, 0].tolist() == [10, 10, 10]
    assert data.test_x[-1, :, 0, 0].tolist() == [1, 2, 3]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "train").mkdir()
    spec = f"folder:{tmp_path}"
    assert "has no images" in refusal(load_data, spec)
    gallery(tmp_path)
    assert "size is 0" in refusal(load_data, f"{spec}?size=0")
    assert "size is 'big'" in refusal(load_data, f"{spec}?size=big")
    picture(tmp_path / "test" / "bird" / "0.png", 0)
    assert "has the class 'bird'" in refusal(load_data, spec)
    (tmp_path / "test" / "bird" / "0.png").unlink()
    deep = tmp_path / "train" / "cat" / "deep.png"
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(deep)
    assert "more than 8 bits" in refusal(load_data, spec)
    deep.unlink()
    broken = tmp_path / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert "0.png is not a readable image" in refusal(load_data, spec)


# --- torchvision


@pytest.fixture(scope="module")
def vision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_package("torchvision", "vision")


def write_idx(path, array):
    """The file format of MNIST: magic number with the dimensions, sizes, bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(header)


def test_torchvision_sets_are_read_from_their_folder(tmp_path, vision):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, file in (("train", "train"), ("test", "t10k")):
        write_idx(raw / f"{file}-images-idx3-ubyte", arrays()[f"{split}_x"])
        write_idx(raw / f"{file}-labels-idx1-ubyte", arrays()[f"{split}_y"])
    data = load_data("torchvision:MNIST", root=str(tmp_path))
    assert (data.input_shape, data.classes, len(data.test_x)) == ((1, 6, 5), 3, 6)
    assert torch.equal(data.train_x[:, 0], torch.from_numpy(arrays()["train_x"]))


def test_torchvision_sets_that_cannot_be_used(tmp_path, vision):
    assert "?download=true" in refusal(load_data, f"torchvision:MNIST?root={tmp_path}")
    assert "?download=true" in refusal(load_data, f"torchvision:SVHN?root={tmp_path}")
    assert "did you mean" in refusal(load_data, "torchvision:CIFAR11")
    assert "cannot be read" in refusal(load_data, f"torchvision:MNIST?root={tmp_path}&colour=1")
    assert "no training and test split" in refusal(load_data, f"torchvision:ImageFolder?root={tmp_path}")


def test_torchvision_sets_that_stay_on_disk(vision, monkeypatch):
    class OnDisk:
        def __init__(self, root: str, split: str, download: bool) -> None:
            self.targets = [0, 1]

    monkeypatch.setattr("torchvision.datasets.OnDisk", OnDisk, raising=False)
    assert "does not hold its images" in refusal(load_data, "torchvision:OnDisk")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    gallery(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "pip install topiarist[vision]" in refusal(load_data, "torchvision:MNIST")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install topiarist[vision]" in refusal(load_data, f"folder:{tmp_path}")


# --- the value


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
    assert "cannot be taken" in refusal(data.subset, 31)
    assert "cannot be taken" in refusal(data.subset, 0)


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

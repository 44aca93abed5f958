"""Data by name: known answers, and one sentence for whatever is damaged."""

import gzip
import io
import os
import socket
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from small_data import arrays, refusal
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.models import import_torchvision


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
        ("npz:/no/such/file.npz", "there is no file /no/such/file.npz"),
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
        ({"train_x": np.full((12, 6, 5), np.nan)}, "has NaN or infinite values"),
        ({"train_x": np.full((12, 6, 5), 1e300)}, "has NaN or infinite values"),
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
        assert "write it again with numpy.savez" in refusal(load_data, f"npz:{path}")
    assert "there is no file" in refusal(load_data, f"npz:{tmp_path}")


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


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # an absolute one may be too long


@pytest.mark.parametrize("make", [fifo, listening, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery(tmp_path)
    make(tmp_path / "test" / "dog" / "x.png")
    assert "x.png is named as an image, but is no regular file" in refusal(load_data, f"folder:{tmp_path}")


def test_more_pixels_than_memory_may_hold_are_refused_with_the_size_to_give(tmp_path):
    gallery(tmp_path)
    picture(tmp_path / "train" / "cat" / "0.png", 1, size=(13_000, 13_000), mode="1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of one image that is so large
        said = refusal(load_data, f"folder:{tmp_path}")
    assert "12 images of 13000x13000, the first one's size, are 2,028,000,000 pixels" in said
    assert said.endswith(f"as in folder:{tmp_path}?size=224")
    assert "the given size" in refusal(load_data, f"folder:{tmp_path}?size=20000")


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
        import_torchvision()


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
    assert "pip install 'topiarist[vision]'" in refusal(load_data, "torchvision:MNIST")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'topiarist[vision]'" in refusal(load_data, f"folder:{tmp_path}")

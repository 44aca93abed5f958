"""Networks of several arguments on the command line: shapes, names, whole numbers."""

import json

import pytest
import torch
from torch import nn

from topiarist.cli import commands, main
from topiarist.cli.arguments import parse
from topiarist.cli.inputs import Source, example_inputs
from topiarist.errors import TopiaristError
from topiarist.models import ModelFactory

SOURCE = Source(ModelFactory(""), None, None, 0)


class Captions(nn.Module):
    """Takes an image, tokens and their mask."""

    def __init__(self):
        super().__init__()
        self.image, self.tokens = nn.Conv2d(3, 8, 3), nn.Embedding(100, 8)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, pixels, tokens, mask=None):
        words = self.tokens(tokens)
        words = words.mean(1) if mask is None else (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(self.body(self.image(pixels).mean((2, 3)) + words).relu())


def captions():
    torch.manual_seed(0)
    return Captions()


def test_values_are_as_they_are_written():
    x = example_inputs(SOURCE, "2x3x8x8")
    assert (x.shape, x.dtype) == ((2, 3, 8, 8), torch.float32)
    tokens = example_inputs(SOURCE, "4x50:7")
    assert (tokens.shape, tokens.dtype, sorted(set(tokens.flatten().tolist()))) == ((4, 50), torch.int64, [*range(7)])
    image, ones = example_inputs(SOURCE, "3x8x8; 1x12:ones")
    assert (image.shape, ones.tolist()) == ((1, 3, 8, 8), [[1] * 12])
    named = example_inputs(SOURCE, "pixels=1x3x8x8;tokens=1x12:100")
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {"pixels": (1, 3, 8, 8), "tokens": (1, 12)}
    assert torch.equal(example_inputs(SOURCE, "2x3x8x8"), x)


@pytest.mark.parametrize(("text", "message"), [
    ("1x12:", "write 1x12:100"), ("1x12:0", "write 1x12:100"), ("1x12:zeros", "write 1x12:100"),
    ("x", "cannot be read"), ("1x2;", "cannot be read"), ("40000x40000", "too large"),
    ("a b=1x2", "write it as NAME=1x3"), ("=1x2", "write it as NAME="),
    ("a=1x2;1x3", "for all, or for none"), ("a=1x2;a=1x3", "a name twice"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_sentence(text, message):
    with pytest.raises(TopiaristError, match=message) as error:
        example_inputs(SOURCE, text)
    assert "\n" not in str(error.value)


def test_an_option_may_be_given_several_times_and_as_a_list_in_a_file(tmp_path):
    words = ["m:f", "--input", "1x3x8x8", "--json", "--input=tokens=1x12:100"]
    assert parse("inspect", commands.inspect, words)["input"] == "1x3x8x8;tokens=1x12:100"
    (tmp_path / "c.yaml").write_text("input: [1x3x8x8, '1x12:100']\n")
    words = ["m:f", "--config", str(tmp_path / "c.yaml")]
    assert parse("inspect", commands.inspect, words)["input"] == "1x3x8x8;1x12:100"
    assert parse("inspect", commands.inspect, [*words, "--input", "5"])["input"] == "5"
    with pytest.raises(TopiaristError, match="--input needs a value"):
        parse("inspect", commands.inspect, ["m:f", "--input"])


@pytest.mark.parametrize("words", [
    ["--input", "1x3x8x8", "--input", "1x12:100"], ["--input", "pixels=1x3x8x8", "--input", "tokens=1x12:100"],
    ["--input", "tokens=1x12:100;pixels=1x3x8x8;mask=1x12:ones"],
])  # fmt: skip
def test_networks_of_several_arguments_are_inspected_and_pruned(words, tmp_path, capsys):
    name = f"{__name__}:captions"
    assert main(["inspect", name, *words, "--json"]) == 0
    groups = {group["name"] for group in json.loads(capsys.readouterr().out)["groups"]}
    torch.save(captions().state_dict(), tmp_path / "w.pt")
    more = ["--weights", str(tmp_path / "w.pt"), "--method", "l1", "--budget.macs", "0.6"]
    assert main(["prune", name, *words, *more, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert groups == set(json.loads(capsys.readouterr().out)["kept"]) == {"tokens", "body"}

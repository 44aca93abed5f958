"""The package works without any of its extras, which the environment of the tests has."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    re.split(r"[\[<>=]", requirement)[0]
    for name, requirements in PYPROJECT["optional-dependencies"].items()
    if name not in ("dev", "docs")
    for requirement in requirements
}

WITHOUT = """
import importlib, pkgutil
from importlib.machinery import PathFinder

usual = PathFinder.find_spec

def found(name, *rest):
    return None if name.partition(".")[0] in EXTRAS else usual(name, *rest)

PathFinder.find_spec = staticmethod(found)
import torch
from torch import nn
import topiarist

for name in topiarist.__all__:
    getattr(topiarist, name)
names = [room.name for room in pkgutil.iter_modules(topiarist.__path__, "topiarist.")]
rooms = [importlib.import_module(name) for name in names if name != "topiarist.__main__"]
for room in rooms:
    for name in getattr(room, "__all__", ()):
        getattr(room, name)

model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
data = topiarist.load_data("digits")
result = topiarist.prune(model, data.example(), "taylor", 0.5, data=data.subset(64))
topiarist.fit(result.model, data.subset(64), topiarist.Recipe(epochs=1))
print(result.proof.ok, topiarist.evaluate(result.model, data) > 5)
fast = topiarist.sparse.compile(result.model.eval(), data.example())
print(torch.equal(fast(data.example()), result.model(data.example())))
"""


def test_the_package_works_without_its_extras() -> None:
    assert {"torchvision", "timm", "llvmlite", "lightning", "transformers", "onnx", "ray"} <= EXTRAS
    script = f"EXTRAS = {EXTRAS!r}\n{WITHOUT}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 3, done.stderr
    assert "llvmlite is not installed; it runs in torch" in done.stderr

"""Pruned models of transformers: what their configuration can state, and folders that load with every weight."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import topiarist
from hf_networks import GENERATE, NETWORKS, Case, built, generated, made, outputs
from topiarist import TopiaristError
from topiarist.integrations import huggingface
from topiarist.integrations.huggingface.folders import SIGNPOST
from topiarist.integrations.huggingface.library import transformers as import_transformers
from topiarist.surgery import difference

pytestmark = pytest.mark.filterwarnings("ignore:torchvision was built for another torch")


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    try:
        return import_transformers()
    except TopiaristError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cases(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    class Cases(dict[str, Case]):
        """Networks that are made when a test asks for them."""

        def __missing__(self, name: str) -> Case:
            return self.setdefault(name, made(transformers, name, tmp_path_factory.mktemp(name)))

    return Cases()


# ------------------------------------------------------------------------------------------------- both kinds of folder


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.by_day(2)
def test_a_configuration_that_can_state_the_shape_does(cases: dict[str, Case], name: str) -> None:
    saved = cases[name].plain.saved
    assert saved.plain, saved.reason
    assert saved.numbers == NETWORKS[name].halved
    assert "by itself" in str(saved)
    files = {path.name for path in saved.folder.iterdir()} - {"generation_config.json"}
    assert files == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.by_day(2)
def test_layers_of_unequal_widths_are_saved_with_their_architecture(cases: dict[str, Case], name: str) -> None:
    saved = cases[name].shaped.saved
    assert not saved.plain
    assert "state" in saved.reason
    assert {path.name for path in (saved.folder / "pruned").iterdir()} == {"architecture.json", "model.safetensors"}
    assert "huggingface.from_pretrained" in (saved.folder / "README.md").read_text()
    config = json.loads((saved.folder / "config.json").read_text())
    assert {key: config[key] for key in NETWORKS[name].halved} == {
        key: NETWORKS[name].options[key] for key in NETWORKS[name].halved
    }


LOADING = """
import sys, torch
from safetensors.torch import save_file
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import warnings
warnings.filterwarnings("ignore")
from topiarist.integrations import huggingface
from topiarist.integrations.huggingface.library import transformers as import_transformers
transformers = import_transformers()
from hf_networks import GENERATE, NETWORKS, generated, outputs
found = {{}}
for name, network in NETWORKS.items():
    for kind in ("plain", "shaped"):
        folder = Path({folders!r}.format(name), kind)
        models = {{"ours": huggingface.from_pretrained(folder)}}
        if kind == "plain":
            models["theirs"] = getattr(transformers, network.kind).from_pretrained(folder).eval()
        for way, model in models.items():
            found[f"{{name}} {{kind}} {{way}}"] = outputs(model, network.inputs)
            if name in GENERATE:
                found[f"{{name}} {{kind}} {{way}} generated"] = generated(model)
save_file(found, sys.argv[1])
"""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.by_day(2)
def test_saved_models_compute_and_generate_the_same(
    cases: dict[str, Case], transformers: ModuleType, name: str
) -> None:
    theirs = getattr(transformers, NETWORKS[name].kind).from_pretrained(cases[name].plain.saved.folder)
    for cut in (cases[name].plain, cases[name].shaped):
        ours = huggingface.from_pretrained(cut.saved.folder)
        for model in (ours, theirs) if cut.saved.plain else (ours,):
            assert type(model) is type(theirs)
            assert not model.training
            expected = outputs(cut.model, NETWORKS[name].inputs)
            assert difference(outputs(model, NETWORKS[name].inputs), expected) <= 1e-6
            if name in GENERATE:
                assert torch.equal(generated(model), generated(cut.model))


@pytest.mark.nightly
def test_a_new_process_loads_what_was_saved(cases: dict[str, Case], tmp_path: Path) -> None:
    """Both kinds by our function, and what a configuration states by transformers: the same outputs and tokens."""
    for name in NETWORKS:
        (tmp_path / name).symlink_to(cases[name].folders)
    script = LOADING.format(tests=str(Path(__file__).parent), folders=f"{tmp_path}/{{}}")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out")
    assert len(found) == 4 * 3 + 2 * 3
    for key, value in found.items():
        name, kind, _, *generation = key.split()
        model = getattr(cases[name], kind).model
        if generation:
            assert torch.equal(value, generated(model)), key
        else:
            assert difference(value, outputs(model, NETWORKS[name].inputs)) <= 1e-6, key


@pytest.mark.parametrize("mismatched", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.by_day(2)
def test_transformers_never_draws_weights_for_a_folder_that_it_cannot_load(
    cases: dict[str, Case], transformers: ModuleType, name: str, mismatched: bool
) -> None:
    for kind in (transformers.AutoModel, getattr(transformers, NETWORKS[name].kind)):
        with pytest.raises(OSError, match=SIGNPOST):
            kind.from_pretrained(cases[name].folders / "shaped", ignore_mismatched_sizes=mismatched)


@pytest.mark.nightly
def test_tied_weights_stay_tied(cases: dict[str, Case]) -> None:
    for kind in ("plain", "shaped"):
        model = huggingface.from_pretrained(cases["t5"].folders / kind)
        assert model.lm_head.weight is model.shared.weight is model.encoder.embed_tokens.weight


def test_types_and_generation_configuration_are_kept_and_other_files_stay(
    transformers: ModuleType, cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases["llama"]
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    for cut in (case.plain, case.shaped, case.plain):
        model = copy.deepcopy(cut.model).to(torch.bfloat16)
        if cut is case.shaped:
            model.model.norm.float()
        model.generation_config.max_new_tokens = 9
        inputs = NETWORKS["llama"].inputs
        saved = huggingface.save_pretrained(model, tmp_path, architecture=cut.architecture, inputs=inputs)
        assert saved.plain == (cut is case.plain), saved.reason
        again = huggingface.from_pretrained(tmp_path)
        assert again.generation_config.max_new_tokens == 9
        assert {n: p.dtype for n, p in again.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
        assert (tmp_path / "README.md").read_text() == "mine"
        assert (
            (tmp_path / "pruned").is_dir() == (tmp_path / "model.safetensors.index.json").is_file() == (not saved.plain)
        )
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


@pytest.mark.nightly
def test_a_pipeline_takes_the_loaded_model(transformers: ModuleType, cases: dict[str, Case]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "small": 5, "network": 6}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    for cut in (cases["bert"].plain, cases["bert"].shaped):
        model = huggingface.from_pretrained(cut.saved.folder)
        classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
        (answer,) = classify("small network")
        shares = outputs(cut.model, {"input_ids": torch.tensor([[5, 6]])}).softmax(1)
        assert answer["score"] == pytest.approx(float(shares.max()), abs=1e-6)


@pytest.mark.nightly
def test_models_alone(transformers: ModuleType, cases: dict[str, Case], tmp_path: Path) -> None:
    """Of a model without its result nobody knows whether a number that differs matters; zeros alone change none."""
    case, inputs = cases["vit"], NETWORKS["vit"].inputs
    for cut, message in ((case.plain, r"without inputs= .*"), (case.shaped, "cannot state the shape .*")):
        with pytest.raises(TopiaristError, match=message + r"give what prune\(\) returned"):
            huggingface.save_pretrained(cut.model, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
    assert huggingface.save_pretrained(case.plain.model, tmp_path / "a", inputs=inputs).plain
    weights = case.graph.weights()
    zeroed = topiarist.cut(case.model, weights, {g.name: torch.arange(g.units) % 3 == 0 for g in weights.groups})
    saved = huggingface.save_pretrained(zeroed, tmp_path / "b")
    assert saved.plain
    assert "nothing changed" in str(saved)


@pytest.mark.nightly
def test_narrower_heads_have_a_scale_that_no_configuration_states(cases: dict[str, Case], tmp_path: Path) -> None:
    """The configuration of ViT does not state their width; its network asks it for one."""
    case, inputs = cases["vit"], NETWORKS["vit"].inputs
    narrower = topiarist.Budget(ratio=1.0, ratios=dict.fromkeys(huggingface.whole_heads(case.graph), 0.5))
    result = topiarist.prune(case.model, inputs, "l1", narrower, graph=case.graph)
    saved = huggingface.save_pretrained(result, tmp_path)
    assert re.search("scaling is 0.2887 and not 0.4082|the same numbers state both", saved.reason)  # by version
    again = huggingface.from_pretrained(tmp_path)
    assert torch.equal(outputs(again, inputs), outputs(result.model.eval(), inputs))


# ------------------------------------------------------------------------------------------------------------ bad input


def test_other_models_are_refused(transformers: ModuleType, tmp_path: Path) -> None:
    class Own(transformers.ViTForImageClassification):
        pass

    with pytest.raises(TopiaristError, match=r"a Linear and no model of transformers: use topiarist\.save"):
        huggingface.save_pretrained(nn.Linear(3, 3), tmp_path)
    own = Own(transformers.ViTConfig(**NETWORKS["vit"].options))
    with pytest.raises(TopiaristError, match="no class Own"):
        huggingface.save_pretrained(own, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TopiaristError, match="cannot write"):
        huggingface.save_pretrained(built(transformers, "vit"), tmp_path / "file")


def changed(source: Path, folder: Path, **values: object) -> Path:
    """A copy of a folder with another configuration."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize("kind", ["plain", "shaped"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["os.system"]}, "names 'os.system', which is no model of transformers"),
        ({"architectures": ["pipeline"]}, "no model of transformers"),
        ({"architectures": ["NoSuchModel"]}, "no model of transformers"),
        ({"architectures": [["x"]]}, "no model of transformers"),
        ({"architectures": []}, "names no class"),
        ({"architectures": None}, "names no class"),
        ({"attn_implementation": "somebody/code"}, "asks for code of others"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
        ({"hidden_size": 40}, "cannot be loaded|not the network that was traced"),
        ({"num_attention_heads": 7}, "cannot be loaded|not the network that was traced"),
    ],
)
def test_hostile_and_damaged_configurations(
    cases: dict[str, Case], tmp_path: Path, kind: str, values: dict[str, object], message: str
) -> None:
    folder = changed(cases["vit"].folders / kind, tmp_path / "copy", **values)
    with pytest.raises(TopiaristError, match=message):
        huggingface.from_pretrained(folder)


def test_missing_and_damaged_files(cases: dict[str, Case], tmp_path: Path) -> None:
    with pytest.raises(TopiaristError, match=r"config\.json"):
        huggingface.from_pretrained(tmp_path)
    for kind, file, message in (
        ("plain", "model.safetensors", "cannot be loaded"),
        ("plain", "config.json", "configuration"),
        ("shaped", "pruned/model.safetensors", "pruned/model.safetensors"),
        ("shaped", "pruned/architecture.json", "architecture"),
    ):
        folder = changed(cases["vit"].folders / kind, tmp_path / f"{kind} {file}".replace("/", " "))
        content = (folder / file).read_bytes()
        damages = [content[: len(content) // 2], None]
        if kind == "shaped":  # a file of transformers has no checksum
            damages.append(content.replace(b"1", b"7", 3))
        for damaged in damages:
            (folder / file).unlink(missing_ok=True)
            if damaged is not None:
                (folder / file).write_bytes(damaged)
            with pytest.raises(TopiaristError, match=message):
                huggingface.from_pretrained(folder)
    folder = tmp_path / "plain model.safetensors"
    state = load_file(cases["vit"].folders / "plain" / "model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TopiaristError, match="has no weights that fit"):
        huggingface.from_pretrained(folder)
    state = load_file(cases["vit"].folders / "plain" / "model.safetensors")
    save_file({**state, "more": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TopiaristError, match="has weights 'more' that its configuration has no place for"):
        huggingface.from_pretrained(folder)


def test_what_has_no_values_or_no_architecture_is_not_saved(cases: dict[str, Case], tmp_path: Path) -> None:
    model = huggingface.from_pretrained(cases["vit"].folders / "shaped")
    with pytest.raises(TopiaristError, match="architecture must be that of a result, but got 3"):
        huggingface.save_pretrained(model, tmp_path, architecture=3)  # type: ignore[arg-type]
    with pytest.raises(TopiaristError, match="no values"):
        huggingface.save_pretrained(model.to("meta"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_generation_configuration_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    folder = changed(cases["vit"].folders / "shaped", tmp_path / "copy")
    for damaged in ("", "[]", "null"):
        (folder / "generation_config.json").write_text(damaged)
        with pytest.raises(TopiaristError, match=r"generation_config\.json cannot be loaded"):
            huggingface.from_pretrained(folder)


def test_another_version_of_transformers_is_named(cases: dict[str, Case], tmp_path: Path) -> None:
    folder = changed(cases["vit"].folders / "shaped", tmp_path / "copy", transformers_version="4.0.0")
    with pytest.warns(UserWarning, match=r"written with transformers 4\.0\.0: compare its outputs"):
        huggingface.from_pretrained(folder)
    folder = changed(folder, tmp_path / "other", hidden_size=40)
    with pytest.raises(TopiaristError, match=r"whose code is not that of .* install transformers==4\.0\.0, or save"):
        huggingface.from_pretrained(folder)

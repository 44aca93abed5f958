"""Pruning in transformers' own Trainer, on synthetic tokens: cuts, logs, and that a stopped one continues."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from topiarist import TopiaristError
from topiarist.models import import_torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with suppress(TopiaristError):
        import_torchvision()  # which transformers imports, and which may be built for another torch
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        ResNetConfig,
        ResNetForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from topiarist.integrations.huggingface_trainer import PruningCallback
    from topiarist.methods.l0 import L0

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.randint(4, 50, (64, 8), generator=torch.Generator().manual_seed(0))
LABELS = (TOKENS[:, 0] > 26).long()
DATA = [{"input_ids": tokens, "labels": label} for tokens, label in zip(TOKENS, LABELS, strict=True)]
EXAMPLE = {"input_ids": TOKENS[:2], "labels": LABELS[:2]}


def classifier() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=8, num_labels=2, **sizes))


IMAGES = LABELS[:, None, None, None] + torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
PICTURES = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]


def convolutional() -> Any:
    """A network with batch norms, whose scales slimming shrinks."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=2, **sizes))


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 10:
            raise KilledError


def callback(*args: Any, **options: Any) -> Any:
    return PruningCallback(*args, **{"example_inputs": EXAMPLE, "outputs": "logits"} | options)


COURSES = {
    "l1": lambda: callback("l1", 0.6, at=[4, 12]),
    "group_lasso": lambda: callback("group_lasso", 0.6, at=[4, 12]),
    "slimming": lambda: callback("slimming", 0.6, at=[14], example_inputs={k: v[None] for k, v in PICTURES[0].items()}),
    "l0": lambda: callback(L0(), 0.6, at=[14]),
    "sfp": lambda: callback("sfp", 0.7, at=[3], per="epoch"),
    "gradual": lambda: callback("magnitude", 0.2, at=range(1, 15, 2), schedule="cubic"),
}


def train(
    pruning: Any,
    folder: Path,
    resume: Path | None = None,
    more: tuple[Any, ...] = (),
    *,
    pictures: bool = False,
    **options: Any,
) -> Any:
    arguments = TrainingArguments(
        str(folder),
        **{"num_train_epochs": 4, "save_steps": 3, "save_strategy": "steps", "logging_steps": 2, "learning_rate": 1e-3}
        | options,
        per_device_train_batch_size=16,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model, data = (convolutional(), PICTURES) if pictures else (classifier(), DATA)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[pruning, *more])
    trainer.train(resume_from_checkpoint=resume and pruning.resume(resume))
    return trainer


@pytest.mark.nightly
@pytest.mark.parametrize("name", COURSES)
def test_a_killed_training_continues_bit_by_bit(name: str, tmp_path: Path) -> None:
    """Killed in the middle of the third epoch, between two checkpoints."""
    pictures = name == "slimming"
    undisturbed = train(COURSES[name](), tmp_path / "whole", pictures=pictures)
    with pytest.raises(KilledError):
        train(COURSES[name](), tmp_path / "killed", more=(Kill(),), pictures=pictures)
    checkpoint = tmp_path / "killed" / "checkpoint-9"
    continued = train(COURSES[name](), tmp_path / "again", resume=checkpoint, pictures=pictures)
    one, two = undisturbed.model.state_dict(), continued.model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    if name == "l1":  # the same object throughout, within the budget
        logs = [log["pruning/macs"] for log in undisturbed.state.log_history if "loss" in log]
        assert logs[0] > logs[4] > logs[-1]
        assert logs[-1] <= 0.6 * logs[0]
        held = {id(p) for group in undisturbed.optimizer.param_groups for p in group["params"]}
        assert held == {id(parameter) for parameter in undisturbed.model.parameters()}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TopiaristError, match="comes after 16 steps, and the training has 16"):
        train(callback("l1", 0.5, at=[4, 16]), tmp_path)
    with pytest.raises(TopiaristError, match="in no trainer yet"):
        callback("l1", 0.5, at=[4]).resume(tmp_path)
    with pytest.raises(TopiaristError, match="leave load_best_model_at_end out"):
        train(callback("l1", 0.5, at=[4]), tmp_path, load_best_model_at_end=True, save_strategy="best")


@pytest.mark.nightly
def test_a_checkpoint_of_another_pruning_is_refused(tmp_path: Path) -> None:
    train(callback("magnitude", 0.5, at=[2]), tmp_path, max_steps=3)
    with pytest.raises(TopiaristError, match="another pruning"):
        train(callback("magnitude", 0.4, at=[2]), tmp_path, resume=tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "topiarist.json").unlink()
    with pytest.raises(TopiaristError, match=r"cannot read the pruning's state .*topiarist\.json"):
        train(callback("magnitude", 0.5, at=[2]), tmp_path, resume=tmp_path / "checkpoint-3")

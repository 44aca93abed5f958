"""Pruning in the trainer of Lightning, `lightning.pytorch` or `pytorch_lightning`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import import_package, shown, suggestion
from topiarist.graph import Outputs
from topiarist.integrations.course import Course, Unit
from topiarist.integrations.in_trainer import Length, PruningInTrainer, State, needs_gates, optimizer_of, restore_random
from topiarist.measure import Loss
from topiarist.methods import Method
from topiarist.pruning import Pruning

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """Returns the base class of callbacks: of the package that is in use, else of one that is installed."""
    installed = [name for name in _PACKAGES if name in sys.modules or find_spec(name.partition(".")[0])]
    used = [name for name in installed if name in sys.modules]
    return import_package((used or installed or list(_PACKAGES))[0], "lightning").Callback


class PruningCallback(_callback()):  # type: ignore[misc]
    """Prunes a network of a LightningModule while Lightning's trainer trains it.

    The network stays the same object and becomes smaller at each cut. So does its optimiser: momenta, second moments
    and the place in a schedule are carried over. Until the last cut the method acts in training as in `topiarist.fit`:
    penalties, proximal steps, gates and soft pruning; gates have an optimiser of their own, like the network's. Weights
    that are pruned one by one stay zero until the end. Sparsity, MACs, parameters and the penalty are logged.

    Lightning's checkpoints hold all of this, and torch's random state. A training that continues from one
    (``ckpt_path``) has the weights of one that was never stopped, bit by bit on a CPU, if its batches come alike.

    Args:
        method: a name, a method with its fields, or a `topiarist.Pruning`, whose budget is that of all cuts together.
        budget: how much is kept after the last cut, as for `topiarist.prune`.
        at: after how many epochs or steps each cut is made, for example ``range(100, 1000, 100)``; with none the method
            acts in training alone.
        per: what ``at`` counts: ``"epoch"``, or ``"step"`` of the optimiser.
        schedule: what is kept after each cut: ``"linear"``, or ``"cubic"`` (Zhu & Gupta 2017: gradual pruning); by
            default the method's own, else linear.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments of the network.
        more_inputs: further examples that take other ways through its code, as for `topiarist.prune`.
        attribute: the network's name in the LightningModule; parts with dots between them.
        outputs: what counts of what the network returns, as for `topiarist.trace`.
        data: batches to measure on, such as a `DataLoader`, for methods that measure.
        loss: of the network's output and a batch's target, for methods that measure gradients.
        averages: averages of the network that become smaller with it, as `topiarist.cut` takes them.

    Raises:
        TopiaristError: there is nothing to do, no example input, the attribute names no network, a cut comes after the
            last step, several processes train, or a checkpoint is of another pruning.

    Paper: Zhu, Gupta: "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.

    Examples:
        >>> callback = PruningCallback("l1", 0.5, at=[2, 4], example_inputs=images)  # doctest: +SKIP
        >>> Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        method: str | Method | Pruning,
        budget: Budget | Mapping[str, Any] | float | None = None,
        *,
        at: Iterable[int] = (),
        per: Unit = "epoch",
        schedule: str | None = None,
        example_inputs: Any = None,
        more_inputs: Sequence[Any] = (),
        attribute: str = "model",
        outputs: Outputs | None = None,
        data: Any = None,
        loss: Loss | None = None,
        averages: Sequence[Any] = (),
    ) -> None:
        self.course = Course.of(
            method,
            budget,
            at=at,
            per=per,
            schedule=schedule,
            example_inputs=example_inputs,
            more_inputs=more_inputs,
            outputs=outputs,
            data=data,
            loss=loss,
            averages=averages,
        )
        self.attribute = attribute
        self.pruning: PruningInTrainer | None = None
        self._loaded: State | None = None
        self._epochs = 0

    @property
    def state_key(self) -> str:
        """Returns the name of this callback's state in a checkpoint."""
        return f"topiarist.{self.attribute}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Traces the network, and cuts it as a checkpoint says before the checkpoint's weights are loaded."""
        _check_trainer(trainer, self.course)
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            if state := checkpoint.get("callbacks", {}).get(self.state_key):
                self._of(pl_module).reshape(state)
            own(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint  # the only hook before the weights are loaded
        if stage == "fit":
            self._of(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves the module as it was."""
        vars(pl_module).pop("on_load_checkpoint", None)
        if self.pruning is not None:
            self.pruning.finish()

    def state_dict(self) -> State:
        """Returns what a checkpoint holds of the pruning: plain values and tensors."""
        return {} if self.pruning is None else self.pruning.state()

    def load_state_dict(self, state_dict: State) -> None:
        """Keeps what a checkpoint holds until the training starts."""
        self._loaded = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Continues torch's random state, which the order of shuffled data is drawn from next."""
        if self._loaded is not None:
            restore_random(self._of(pl_module).network, self._loaded)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches the method; optimisers have their state by now."""
        pruning = self._of(pl_module)
        optimizer = optimizer_of(pruning.network, trainer.optimizers)
        self._epochs = trainer.current_epoch
        pruning.start(optimizer, _length(trainer), self._loaded)
        self._loaded = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Prunes softly, and cuts where it is time to."""
        self._of(pl_module).advance(trainer.current_epoch, trainer.global_step, epoch_begins=True)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Cuts where it is time to."""
        self._of(pl_module).advance(trainer.current_epoch, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs sparsity, MACs, parameters and the penalty."""
        pl_module.log_dict(self._of(pl_module).metrics(), on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Counts the epoch."""
        self._epochs = trainer.current_epoch + 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Prunes softly once more where the method does, and detaches it."""
        self._of(pl_module).finish(self._epochs)

    def _of(self, pl_module: Any) -> PruningInTrainer:
        """Returns the pruning of a module's network, and begins one where there is none."""
        network = _network(pl_module, self.attribute)
        if self.pruning is None or self.pruning.network is not network:
            self.pruning = PruningInTrainer(self.course, network)
        return self.pruning


def _network(pl_module: nn.Module, attribute: str) -> nn.Module:
    """Returns the network that an attribute names."""
    named = dict(pl_module.named_modules())
    if not attribute or attribute not in named:
        children = [name for name, _ in pl_module.named_children()]
        hint = suggestion(attribute, children, "make the network an attribute of it")
        raise TopiaristError(f"{type(pl_module).__name__} has no network {shown(attribute)}, the attribute=: {hint}")
    return named[attribute]


def _check_trainer(trainer: Any, course: Course) -> None:
    """Raises where several processes train, or gates would get scaled gradients."""
    kind = type(trainer.strategy)
    if trainer.world_size > 1 or not any(base.__name__ == "SingleDeviceStrategy" for base in kind.__mro__):
        raise TopiaristError(
            f"{kind.__name__} holds the tensors of before a cut in its processes: train on one device, devices=1, or "
            "prune before, with topiarist.prune"
        )
    if needs_gates(course) and str(trainer.precision).startswith("16"):
        raise TopiaristError("gates are trained without a gradient scaler: give the trainer precision='bf16-mixed'")


def _length(trainer: Any) -> Length:
    """Returns how long a training is, as far as the trainer knows."""
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
    steps = trainer.estimated_stepping_batches
    data: Any = getattr(trainer.train_dataloader, "dataset", None)
    examples = len(data) if hasattr(data, "__len__") else None
    return Length(epochs, int(steps) if steps < float("inf") else None, examples)

"""Pruning in the `Trainer` of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import as_path, import_package
from topiarist.graph import Outputs
from topiarist.integrations.course import Course, Unit
from topiarist.integrations.in_trainer import Length, PruningInTrainer, State, needs_gates
from topiarist.integrations.state_files import read_state, write_state
from topiarist.measure import Loss
from topiarist.methods import Method
from topiarist.pruning import Pruning

_TrainerCallback: Any = import_package("transformers", "hf").TrainerCallback


class PruningCallback(_TrainerCallback):
    """Prunes the model of transformers' `Trainer` while it trains.

    The model stays the same object and becomes smaller at each cut. So does its optimiser: momenta, second moments and
    the place in a schedule are carried over. Until the last cut the method acts in training as in `topiarist.fit`:
    penalties, proximal steps, gates and soft pruning; gates have an optimiser of their own, like the model's. Weights
    that are pruned one by one stay zero until the end. Sparsity, MACs, parameters and the penalty join each log.

    Each checkpoint gets two more files, ``topiarist.json`` and ``topiarist.safetensors``. A training that continues
    from it (see `resume`) has the weights of one that was never stopped, bit by bit on a CPU.

    Args:
        method: a name, a method with its fields, or a `topiarist.Pruning`, whose budget is that of all cuts together.
        budget: how much is kept after the last cut, as for `topiarist.prune`.
        at: after how many steps or epochs each cut is made, for example ``range(100, 1000, 100)``; with none the method
            acts in training alone.
        per: what ``at`` counts: ``"step"`` of the optimiser, or ``"epoch"``.
        schedule: what is kept after each cut: ``"linear"``, or ``"cubic"`` (Zhu & Gupta 2017: gradual pruning); by
            default the method's own, else linear.
        example_inputs: a dict of keyword arguments as the trainer gives them, with ``labels``, of two examples.
        more_inputs: further examples that take other ways through the model's code, as for `topiarist.prune`.
        outputs: what counts of what the model returns, such as ``"logits"``, as for `topiarist.trace`.
        data: batches to measure on, for methods that measure.
        loss: of the model's output and a batch's target, for methods that measure gradients.
        averages: averages of the model that become smaller with it, as `topiarist.cut` takes them.

    Raises:
        TopiaristError: there is nothing to do, no example input, a cut comes after the last step, several devices
            train, or a checkpoint is of another pruning.

    Paper: Zhu, Gupta: "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.

    Examples:
        >>> callback = PruningCallback("l1", 0.5, at=[100, 200], example_inputs=tokens)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP
    """

    def __init__(
        self,
        method: str | Method | Pruning,
        budget: Budget | Mapping[str, Any] | float | None = None,
        *,
        at: Iterable[int] = (),
        per: Unit = "step",
        schedule: str | None = None,
        example_inputs: Any = None,
        more_inputs: Sequence[Any] = (),
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
        self.pruning: PruningInTrainer | None = None
        self._model: nn.Module | None = None
        self._loaded: State | None = None

    def resume(self, checkpoint: str | Path) -> str:
        """Cuts the trainer's new model as a checkpoint was; the trainer loads the weights into it.

        Args:
            checkpoint: the folder, ``checkpoint-...``.

        Returns:
            The folder, for ``resume_from_checkpoint``.

        Raises:
            TopiaristError: the callback is in no trainer yet, the folder has no state of a pruning, or one of another.

        Examples:
            >>> trainer.train(resume_from_checkpoint=callback.resume("out/checkpoint-500"))  # doctest: +SKIP
        """
        if self._model is None:
            raise TopiaristError("the callback is in no trainer yet: make the Trainer with callbacks=[callback] first")
        state = read_state(as_path(checkpoint))
        self._of(self._model).reshape(state)
        self._loaded = state
        return str(checkpoint)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Traces the model."""
        _check_arguments(args, self.course)
        self._model = kwargs["model"]
        if self._model is not None:  # else each training makes its own
            self._of(self._model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attaches the method; the optimiser has its state by now."""
        if state.global_step and self._loaded is None:
            raise TopiaristError(
                f"the training continues after step {state.global_step} and the pruning does not: give "
                "resume_from_checkpoint=callback.resume(folder)"
            )
        data: Any = getattr(kwargs["train_dataloader"], "dataset", None)
        examples = len(data) if hasattr(data, "__len__") else None
        length = Length(state.num_train_epochs, state.max_steps, examples)
        self._of(kwargs["model"]).start(kwargs["optimizer"], length, self._loaded)
        self._loaded = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prunes softly, and cuts where it is time to."""
        self._of(kwargs["model"]).advance(int(state.epoch or 0), state.global_step, epoch_begins=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cuts where it is time to."""
        self._of(kwargs["model"]).advance(int(state.epoch or 0), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds sparsity, MACs, parameters and the penalty to a log of the training."""
        if logs is not None and "loss" in logs and self.pruning is not None:
            metrics = {name: float(value) for name, value in self.pruning.metrics().items()}
            logs.update(metrics)
            state.log_history[-1].update(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes two files into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            write_state(folder, self._of(kwargs["model"]).state())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prunes softly once more where the method does, and detaches it."""
        self._of(kwargs["model"]).finish(int(state.epoch or 0))

    def _of(self, model: nn.Module) -> PruningInTrainer:
        """Returns the pruning of a model, and begins one where there is none."""
        if self.pruning is None or self.pruning.network is not model:
            self.pruning = PruningInTrainer(self.course, model)
        return self.pruning


def _check_arguments(args: Any, course: Course) -> None:
    """Raises where several devices train, or the trainer would load another shape in the end."""
    if args.world_size > 1 or args.n_gpu > 1 or args.deepspeed or args.fsdp:
        raise TopiaristError(
            "several devices, FSDP and DeepSpeed hold the tensors of before a cut: train on one device, or prune "
            "before, with topiarist.prune"
        )
    if args.load_best_model_at_end:
        raise TopiaristError(
            "the best checkpoint may have another shape than the model in the end: leave load_best_model_at_end out, "
            "and load it into a new model"
        )
    if needs_gates(course) and args.fp16:
        raise TopiaristError("gates are trained without a gradient scaler: give the arguments bf16=True")

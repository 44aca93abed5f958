"""Prunes a network while a trainer trains it: what the callbacks of all trainers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.errors import TopiaristError
from topiarist.files import gate_buffers, register_gate, shown
from topiarist.graph import unwrapped
from topiarist.integrations.adopting import adopt
from topiarist.integrations.course import Course
from topiarist.measure import device_of, map_tensors, to_device
from topiarist.methods import Gate, Method, Penalty, Rule, Selector, Soft
from topiarist.pruning import Cuts, trains_sparsely
from topiarist.train import Attached, attach

State = dict[str, Any]
"""Plain values and tensors, nested."""


_KINDS: Mapping[str, type] = {
    "pruning": str,
    "done": int,
    "softened": int,
    "architecture": dict,
    "gates": dict,
    "steps": list,
    "buffers": dict,
    "random": dict,
}
"""The parts of a state, and what they are."""

_DAMAGED = "the pruning's state in the checkpoint is damaged: give another checkpoint, or start without it"


@dataclass(frozen=True)
class Length:
    """How long a training is; ``None`` for what is not known.

    Attributes:
        epochs: passes over the data.
        steps: of the optimiser.
        examples: in the data.
    """

    epochs: int | None = None
    steps: int | None = None
    examples: int | None = None


class PruningInTrainer:
    """Prunes one network while it trains, in place.

    It is called in this order: `reshape` where a training is resumed, before the weights are loaded; `start` when the
    optimiser has its state; `advance` before each epoch and each step; `finish`.

    Args:
        course: what is pruned, and when.
        network: the network as the user made it.

    Attributes:
        network: the user's object, which becomes smaller.
        cuts: those that were made and those to come.

    Raises:
        TopiaristError: the network is wrapped, or cannot be pruned so.
    """

    def __init__(self, course: Course, network: nn.Module) -> None:
        if unwrapped(network) is not network:
            raise TopiaristError(
                f"the network is wrapped ({type(network).__name__}) and would not become smaller: give it without "
                "torch.compile and parallel wrappers"
            )
        self.course, self.network = course, network
        inputs, more = self._inputs()
        self.cuts = Cuts.of(network, inputs, course.request, course.data, loss=course.loss, more_inputs=more)
        _check_budget(course, self.cuts)
        self.softened = -1
        self._context, self._gates = ExitStack(), dict[str, nn.Module]()
        finalize(self, self._context.close)  # where a trainer was stopped, before the interpreter ends
        self._attached: Attached | None = None
        self._method: Method | None = None
        self._optimizer: Any = None
        self._length = Length()

    def reshape(self, state: State) -> None:
        """Cuts the network as it was when a state was stored, before its weights are loaded.

        Raises:
            TopiaristError: the state is of another pruning, or of an earlier one of this network.
        """
        _check_state(state)
        if state["pruning"] != self.course.identity:
            raise TopiaristError(
                f"the checkpoint is of another pruning ({shown(state['pruning'])}): give the callback that wrote "
                "it, or start without the checkpoint"
            )
        done = int(state["done"])
        if not 0 <= done <= len(self.course.at):
            raise TopiaristError(_DAMAGED)
        if self.cuts.done == done:
            return
        if self.cuts.done:
            raise TopiaristError(
                f"the checkpoint is of {done} cuts and the network has had {self.cuts.done}: load it into a new model"
            )
        architecture = Architecture.from_json(state["architecture"])
        smaller = self.cuts.resume(self.network, architecture, done)
        for average in self.course.averages:
            _reshape_average(average, architecture)
        adopt(self.network, smaller)

    def start(self, optimizer: Any, length: Length, state: State | None = None) -> None:
        """Attaches what acts in training, and continues where a state says so.

        Args:
            optimizer: that trains the network, with its state.
            length: of the training.
            state: of a training that is resumed; `reshape` had it before.

        Raises:
            TopiaristError: a cut comes after the last step, or the optimiser holds other parameters.
        """
        self.course.check_length(length.epochs, length.steps)
        self.cuts.work.example_inputs, self.cuts.work.more_inputs = self._inputs()
        other = _STARTED.get(id(optimizer))
        if other is not None and other is not self and other.network is self.network:
            raise TopiaristError("two callbacks prune this network: give one, whose at= has all cuts")
        if self.course.at and not self.cuts.complete:
            self.cuts.check(self.network, optimizer, *self.course.averages)
        self._optimizer, self._length = optimizer, length
        with _undamaged():
            for name, value in (state or {}).get("buffers", {}).items():
                owner, _, leaf = name.rpartition(".")
                register_gate(self.network.get_submodule(owner), leaf, value.to(device_of(self.network)))
        self._attach()
        _STARTED[id(optimizer)] = self
        if state is not None:
            with _undamaged():
                self._restore(state)

    def advance(self, epochs: int, steps: int, *, epoch_begins: bool = False) -> bool:
        """Softens and cuts where it is time to, and returns whether it has cut.

        Args:
            epochs: how many are done.
            steps: how many are done.
            epoch_begins: whether an epoch begins here.
        """
        if epoch_begins:
            self._soften(epochs)
        progress = epochs if self.course.per == "epoch" else steps
        due = sum(at <= progress for at in self.course.at)
        before = self.cuts.done
        while self.cuts.done < due and not self.cuts.complete:
            self._detach()
            with _apart(self.network, self.cuts.done):
                smaller = self.cuts.next(self.network, self._optimizer, *self.course.averages)
            adopt(self.network, smaller)
            self._attach()
        return self.cuts.done > before

    def finish(self, epochs: int | None = None) -> None:
        """Detaches all; gates are multiplied into the weights. Can be called again."""
        if epochs is not None:
            self._soften(epochs)
        self._detach()
        _STARTED.pop(id(self._optimizer), None)

    @torch.no_grad()
    def metrics(self) -> dict[str, Any]:
        """Returns what a logger shows: sparsity, MACs, parameters, and the penalty where there is one."""
        before, after = self.cuts.costs
        values: dict[str, Any] = {
            "pruning/sparsity": 1 - after.params / max(before.params, 1),
            "pruning/macs": float(after.macs),
            "pruning/params": float(after.params),
        }
        if isinstance(self._method, Penalty) and self._attached is not None and self._attached.units is not None:
            values["pruning/penalty"] = self._method.penalty(self.network, self._attached.units)
        return values

    def state(self) -> State:
        """Returns what a training continues from, beside weights and optimiser: plain values and tensors."""
        own = None if self._attached is None else self._attached.own
        steps = [own.state.get(gate, {}) for gate in own.param_groups[0]["params"]] if own else []
        values = {
            "gates": {name: dict(gates.state_dict()) for name, gates in self._gates.items()},
            "steps": [dict(each) for each in steps],
            "buffers": gate_buffers(self.network),
            "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_states(self.network)},
        }
        copies: State = map_tensors(values, lambda tensor: tensor.detach().cpu().clone())
        plain = {"pruning": self.course.identity, "done": self.cuts.done, "softened": self.softened}
        return {**plain, "architecture": self.cuts.architecture.to_json(), **copies}

    def _restore(self, state: State) -> None:
        """Continues gates and their optimiser."""
        self.softened = int(state["softened"])
        for name, gates in self._gates.items():
            if name in state["gates"]:  # not where the training was complete
                gates.load_state_dict(state["gates"][name])
        own = None if self._attached is None else self._attached.own
        if own is not None and state["steps"]:
            for gate, step in zip(own.param_groups[0]["params"], state["steps"], strict=True):
                own.state[gate] = {key: _beside(value, gate) for key, value in step.items()}

    def _inputs(self) -> tuple[Any, Any]:
        """Returns the example inputs, and further ones, where the network is now."""
        course = self.course
        return to_device((course.example_inputs, course.more_inputs), device_of(self.network))

    def _attach(self) -> None:
        """Attaches the method while cuts are to come, and the masks of weights that are pruned."""
        course, cuts = self.course, self.cuts
        acts = trains_sparsely(course.request.method) and (not course.at or not cuts.complete)
        self._method = self._for_length(course.request.method) if acts else None
        keep = cuts.keep if cuts.is_weights and cuts.done else None
        if self._method is None and keep is None:
            return
        before = set(self.network._modules)
        excluded = cuts.excluded if acts else ()
        context = attach(self._method, self.network, self._optimizer, cuts.units, keep, exclude=excluded, own_step=True)
        with _apart(self.network, cuts.done):
            self._attached = self._context.enter_context(context)
        self._gates = {name: self.network.get_submodule(name) for name in self.network._modules if name not in before}
        for handle in hidden(self.network, self._gates):
            self._context.callback(handle.remove)

    def _detach(self) -> None:
        self._context.close()
        self._attached, self._gates = None, {}

    def _for_length(self, method: Method) -> Method:
        """Returns the method for a training of this length, as far as it is known."""
        examples, steps = self._length.examples, self._length.steps
        return method if examples is None or steps is None else method.in_training(examples, steps)

    def _soften(self, epochs: int) -> None:
        """Prunes softly after so many epochs, once."""
        if isinstance(self._method, Soft) and self._attached is not None and self.softened < epochs:
            with torch.no_grad():
                self._method.soften(self.network, self.cuts.units, epochs, self._length.epochs or epochs)
            self.softened = epochs


_STARTED: WeakValueDictionary[int, PruningInTrainer] = WeakValueDictionary()
"""Optimiser (by id) → what prunes the network that it trains now."""


def _check_state(state: object) -> None:
    """Raises where a state lacks a part, or has one of another kind."""
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in _KINDS.items()):
        raise TopiaristError(_DAMAGED)


@contextmanager
def _undamaged() -> Iterator[None]:
    """Says of a state whose values cannot be restored that it is damaged."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TopiaristError(_DAMAGED) from error


def _check_budget(course: Course, cuts: Cuts) -> None:
    """Raises where a method's rule gives this network no budget, so that the first cut would fail."""
    method = course.request.method
    own = isinstance(method, Selector) or (isinstance(method, Rule) and method.budget(cuts.units) is not None)
    if course.request.budget is None and not own:
        raise TopiaristError(f"{method.name} needs a budget: give macs, params or ratio, the fraction that is kept")


def needs_gates(course: Course) -> bool:
    """Returns whether a method multiplies units by gates while it trains."""
    return isinstance(course.request.method, Gate)


def hidden(network: nn.Module, names: Mapping[str, Any]) -> list[Any]:
    """Keeps submodules out of a network's state dicts, and returns what ends it.

    The state dict is then that of the plain network, whatever the trainer does with it.
    """

    def is_one(key: str) -> bool:
        return any(f".{name}." in f".{key}" for name in names)

    def leave_out(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for key in [key for key in state if key.startswith(prefix) and is_one(key.removeprefix(prefix))]:
            del state[key]

    def miss_none(_: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not is_one(key)]

    if not names:
        return []
    return [
        network.register_state_dict_post_hook(leave_out),
        network.register_load_state_dict_post_hook(miss_none),
    ]


def optimizer_of(network: nn.Module, optimizers: list[Any]) -> Any:
    """Returns the one optimiser that trains a network.

    Raises:
        TopiaristError: there is none, or several.
    """
    own = {id(parameter) for parameter in network.parameters()}
    held = [o for o in optimizers if any(id(p) in own for group in o.param_groups for p in group["params"])]
    if len(held) != 1:
        raise TopiaristError(
            f"{len(held) or 'no'} optimizers train the network, and pruning takes one: give all of its "
            "parameters to one optimizer"
        )
    return held[0]


def _beside(value: Any, parameter: Tensor) -> Any:
    """Returns a stored value of an optimiser; one of a parameter's shape on the device of the parameter."""
    aligned = isinstance(value, Tensor) and value.shape == parameter.shape
    return value.to(parameter.device) if aligned else value


def restore_random(network: nn.Module, state: State) -> None:
    """Gives torch the random state that it had when a state was stored: of dropout, of gates, of shuffled data."""
    with _undamaged():
        torch.set_rng_state(state["random"]["cpu"])
        if cuda := state["random"]["cuda"]:
            torch.cuda.set_rng_state(cuda[0], device_of(network))


def _cuda_states(network: nn.Module) -> list[Tensor]:
    device = device_of(network)
    return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []


@contextmanager
def _apart(network: nn.Module, seed: int) -> Iterator[None]:
    """Draws random numbers from a seed, and gives the training back the state that it had."""
    device = device_of(network)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _reshape_average(average: Any, architecture: Architecture) -> None:
    """Gives an average the shape of earlier cuts, so that its values can be loaded."""
    if isinstance(module := getattr(average, "module", None), nn.Module):
        adopt(module, architecture.apply(module))
    else:
        work = architecture.plan()
        average.update({name: work.of(name, value) for name, value in average.items()})

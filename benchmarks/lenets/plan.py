"""What is compared: networks, recipes, what is tried on held-out images, and the cells that follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from topiarist.studies import Cell

HELD = "mnist-held"  # 50,000 training images, and the other 10,000 as its test images
WHOLE = "mnist"

TRAIN = {"lr": 0.05, "batch_size": 128, "schedule": "cosine", "augment": False}
ADAM = {"optimizer": "adam", "lr": 1.2e-3, "batch_size": 128, "schedule": "constant", "augment": False}


Bits = int | Mapping[str, int]
"""Of all codebooks, or glob pattern of a layer → of its own."""


@dataclass(frozen=True)
class Smallest:
    """How the smallest file is made.

    Attributes:
        cut: group → fraction of its units that it starts from; ``None`` takes what variational dropout left in a
            cell of its own.
        pressures: weights of the divergence, tried on held-out images where the network is cut.
        bits: of the codebooks, likewise; elsewhere there is a file of each.
        epochs: of the training with variational dropout, of that with its zeros, of that with shared weights.
        seeds: how many files are made.
    """

    cut: Mapping[str, float] | None
    pressures: tuple[float, ...]
    bits: tuple[Bits, ...]
    epochs: tuple[int, int, int]
    seeds: int


@dataclass(frozen=True)
class Network:
    """One of the two LeNets.

    Attributes:
        name: in the zoo.
        title: in the tables.
        epochs: of the dense training, between two of the steps of pruning, and after the last.
        tried: what the held-out images choose from: dropout, weight decay.
        kept: glob pattern of a layer → fraction of its weights that Han et al. (2015) keep.
        bits: glob pattern of a layer → bits of its codebook in Deep Compression.
        errors: of the papers, per cent: dense, magnitude, Deep Compression.
        rates: of the papers: weights by magnitude, bytes by Deep Compression.
        limit: error that the smallest file may have, per cent.
        smallest: how that file is made.
    """

    name: str
    title: str
    epochs: tuple[int, int, int]
    tried: tuple[tuple[float, float], ...]
    kept: Mapping[str, float]
    bits: Mapping[str, int]
    errors: tuple[float, float, float]
    rates: tuple[float, float]
    limit: float
    smallest: Smallest


NETWORKS = (
    Network(
        name="lenet300",
        title="LeNet-300-100",
        epochs=(40, 8, 40),
        tried=((0.2, 1e-4), (0.2, 5e-4), (0.4, 1e-4), (0.4, 5e-4)),
        kept={"layers.1.*": 0.08, "layers.4.*": 0.09, "layers.7.*": 0.26},
        bits={"*": 5},
        errors=(1.64, 1.59, 1.58),
        rates=(12, 40),
        limit=1.8,
        smallest=Smallest(
            cut={"layers.1": 0.4, "layers.3": 0.5},
            pressures=(1.0, 2.0, 4.0),
            bits=(2, 3, 4),
            epochs=(100, 10, 5),
            seeds=3,
        ),
    ),
    Network(
        name="lenet5",
        title="LeNet-5",
        epochs=(20, 5, 20),
        tried=((0.3, 1e-4), (0.3, 5e-4)),
        kept={"conv1.*": 0.66, "conv2.*": 0.12, "fc1.*": 0.08, "fc2.*": 0.19},
        bits={"conv*": 6, "fc*": 4},
        errors=(0.80, 0.77, 0.74),
        rates=(12, 39),
        limit=1.0,
        smallest=Smallest(
            cut=None,
            pressures=(1.0,),
            bits=(5, {"conv1.weight": 4, "fc2.weight": 4, "*": 5}, 4),
            epochs=(0, 24, 12),
            seeds=1,
        ),
    ),
)
STEPS = 4
TICKETS = {7: 21.0, 9: 13.4, 15: 3.5}  # rounds → per cent of the weights that are left
TICKET_EPOCHS = 8
MERGED = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)  # of the neurons, that stay
DELETED = (0.6, 0.5, 0.4, 0.2, 0.1, 0.05)  # of the weights, that stay
TRAINED_ON = 0.4  # of the weights, that stay where training follows: LeCun et al. delete 60 %
CUT_SEED = 1  # of the network that is cut before it is trained with noise
SURGEONS = ("magnitude", "obd", "obs")
SURGEON_IMAGES = 2000


def dense(network: Network, data: str, seed: int, dropout: float, decay: float) -> Cell:
    """The trained network."""
    told = {"recipe": {"epochs": network.epochs[0], "weight_decay": decay, **TRAIN}, "dropout": dropout}
    return Cell("dense", network.name, data, seed, settings=told)


def sparse(network: Network, data: str, seed: int, dropout: float, decay: float) -> Cell:
    """Magnitude pruning in steps, trained on between them and in the end."""
    between, last = ({"epochs": n, "weight_decay": decay, **TRAIN, "lr": 0.02} for n in network.epochs[1:])
    told = {"between": between, "recipe": last, "dropout": dropout, "steps": STEPS}
    start = dense(network, data, seed, dropout, decay)
    return Cell("sparse", network.name, data, seed, "magnitude", {"ratios": dict(network.kept)}, told, (start,))


def shared(network: Network, data: str, seed: int, dropout: float, decay: float) -> Cell:
    """The sparse network with shared weights that train on, in one file."""
    told = {"bits": dict(network.bits), "recipe": {"epochs": 6, "weight_decay": 0.0, **TRAIN, "lr": 2e-4}}
    start = sparse(network, data, seed, dropout, decay)
    return Cell("shared", network.name, data, seed, "magnitude", settings={**told, "dropout": dropout}, needs=(start,))


def choices(network: Network) -> list[Cell]:
    """What is tried at seed 0 on the held-out images, in the order of ``network.tried``."""
    return [sparse(network, HELD, 0, *tried) for tried in network.tried]


def surgeons(network: Network, seed: int, chosen: tuple[float, float]) -> Cell:
    """Error against weights deleted, on one network: magnitude, OBD and OBS; at one fraction trained on as well."""
    told = {
        "methods": list(SURGEONS),
        "kept": list(DELETED),
        "images": SURGEON_IMAGES,
        "dropout": chosen[0],
        "trained_on": TRAINED_ON,
        "recipe": {"epochs": network.epochs[1], "weight_decay": chosen[1], **TRAIN, "lr": 0.02},
    }
    return Cell("deleted", network.name, HELD, seed, settings=told, needs=(dense(network, HELD, seed, *chosen),))


def merged(network: Network, seed: int, chosen: tuple[float, float]) -> Cell:
    """Error against neurons merged, without data, beside the same cuts without merging."""
    told = {"kept": list(MERGED), "dropout": chosen[0]}
    return Cell("merged", network.name, WHOLE, seed, settings=told, needs=(dense(network, WHOLE, seed, *chosen),))


def tickets(network: Network, seed: int) -> Cell:
    """Iterative magnitude pruning with the survivors rewound, against the same masks with other initial weights."""
    told = {"recipe": {"epochs": TICKET_EPOCHS, "weight_decay": 0.0, **ADAM}, "rounds": sorted(TICKETS), "rate": 0.8}
    return Cell("tickets", network.name, WHOLE, seed, settings=told)


def gated(network: Network, method: str, told: Mapping[str, Any], chosen: tuple[float, float]) -> Cell:
    """A network trained with random gates or noise, pruned by them; where it is cut first, the dense one is trained."""
    if "widths" not in told:
        return Cell("gated", network.name, WHOLE, 0, method, settings=dict(told))
    start = dense(network, WHOLE, CUT_SEED, *chosen)
    return Cell("gated", network.name, WHOLE, CUT_SEED, method, settings=dict(told), needs=(start,))


def after(network: Network, method: str, told: Mapping[str, Any], chosen: tuple[float, float]) -> Cell:
    """The sparsest network of such a cell, trained on with its zeros as the smallest file's is."""
    start, recipe = gated(network, method, told, chosen), _tune(network.smallest)
    return Cell("after", network.name, WHOLE, 0, method, settings={"recipe": recipe}, needs=(start,))


def _tune(plan: Smallest) -> dict[str, Any]:
    return {
        **ADAM,
        "weight_decay": 0.0,
        "schedule": "linear",
        "lr": 5e-4,
        "epochs": plan.epochs[1],
        "milestones": [0.0],
    }


def record(network: Network, data: str, seed: int, pressure: float, chosen: tuple[float, float]) -> Cell:
    """The smallest file at one strength of the divergence, for several numbers of bits."""
    adam, plan = {**ADAM, "weight_decay": 0.0, "schedule": "linear"}, network.smallest
    noisy, _, tied = plan.epochs
    told: dict[str, Any] = {
        "bits": list(plan.bits),
        "tune": _tune(plan),
        "tied": {**adam, "lr": 1e-4, "epochs": tied, "milestones": [0.0]},
    }
    if plan.cut is None:
        start = next(gated(network, *each, chosen) for each in GATED[network.name] if each[0] == "vardrop")
        return Cell("record", network.name, data, seed, "vardrop", settings=told, needs=(start,))
    told |= {
        "widths": dict(plan.cut),
        "pressure": pressure,
        "dense": {"epochs": 12, "weight_decay": 1e-4, **TRAIN},
        "noisy": {**adam, "lr": 1e-3, "epochs": noisy, "milestones": [0.5]},
    }
    return Cell("record", network.name, data, seed, "vardrop", settings=told)


def named(bits: Bits) -> str:
    """Numbers of bits in a few words."""
    return str(bits) if isinstance(bits, int) else ", ".join(f"{layer} {count}" for layer, count in bits.items())


def records(network: Network, chosen: tuple[float, float]) -> list[Cell]:
    """What is tried at seed 0 on the held-out images: nothing, where another cell's network is the start."""
    if network.smallest.cut is None:
        return []
    return [record(network, HELD, 0, pressure, chosen) for pressure in network.smallest.pressures]


GATED: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "lenet300": (
        (
            "vardrop",
            {
                "dropout": 0.0,
                "fields": {},
                "rate": 68,
                "recipe": {**ADAM, "lr": 1e-3, "epochs": 200, "weight_decay": 0.0, "schedule": "linear"}
                | {"milestones": [0.5]},
            },
        ),
    ),
    "lenet5": (
        *(
            (
                "vardrop",
                {
                    "dropout": 0.0,
                    "widths": {"conv1": 0.7, "conv2": 0.64, "fc1": 0.32},
                    "cut": {"epochs": 4, "weight_decay": 1e-4, **TRAIN, "lr": 0.02},
                    "fields": {},
                    "rate": 280,
                    "recipe": {**ADAM, "lr": 2e-3, "epochs": epochs, "weight_decay": 0.0, "schedule": "linear"}
                    | {"milestones": [0.5]},
                },
            )
            for epochs in (70, 140)
        ),
        (
            "l0",
            {
                "dropout": 0.0,
                "fields": {"lam": 0.1, "inputs": True},
                "recipe": {**ADAM, "lr": 1e-3, "epochs": 100, "weight_decay": 0.0, "schedule": "linear"}
                | {"milestones": [0.5]},
            },
        ),
    ),
}
"""Network → methods whose papers train 200 epochs, with one seed; ``widths`` are those of a cut before."""


def first(networks: Iterable[Network]) -> Iterator[Cell]:
    """What is needed for the choices."""
    for network in networks:
        yield from choices(network)


def rest(network: Network, seeds: Iterable[int], chosen: tuple[float, float]) -> Iterator[Cell]:
    """All that follows a choice."""
    for seed in seeds:
        yield shared(network, WHOLE, seed, *chosen)
        yield merged(network, seed, chosen)
        if network.name == "lenet300":
            yield surgeons(network, seed, chosen)
            yield tickets(network, seed)
    for method, told in GATED[network.name]:
        yield gated(network, method, told, chosen)
        if network.smallest.cut is None:
            yield after(network, method, told, chosen)

"""What fills a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import SMALL, Bench, Result
from record import loaded, record, tuned
from torch import nn

import paper_format
import topiarist
from topiarist import Budget, compress, prune, shrink
from topiarist.methods import make
from topiarist.studies import Cell

OTHER = 1_000_003  # from a seed to the one that draws other initial weights


def dense(bench: Bench) -> Result:
    """The dense network."""
    model = bench.model()
    bench.fit(model, bench.recipe())
    return bench.keep(model, {"error": bench.error(model)})


def sparse(bench: Bench, start: Path) -> Result:
    """Pruned in steps, and trained on with the mask."""
    cell = bench.cell
    model = bench.model(start)
    done = prune(
        model,
        bench.data.example(),
        topiarist.Pruning.of(
            cell.method,
            dict(cell.budget),
            steps=topiarist.Steps(cell.settings["steps"], training=bench.recipe("between")),
        ),
        data=bench.data,
        run=topiarist.Run(seed=cell.seed),
    )
    pruned = bench.error(done.model)
    bench.fit(done.model, bench.recipe(), graph=done.graph, keep=done.keep)
    return bench.keep(
        done.model, {"pruned": pruned, "error": bench.error(done.model), **weights(done.model, bench.cell.network)}
    )


def shared(bench: Bench, start: Path) -> Result:
    """Deep Compression of a sparse network: the file in the paper's format and in ours."""
    model = bench.model(start)
    many = compress.share(model, bits=bench.cell.settings["bits"])
    before = bench.error(many.model)
    with many.tied():
        bench.fit(many.model, bench.recipe())
    return {
        "before": before,
        "error": bench.error(many.model),
        **files(bench, many.model),
        **weights(many.model, bench.cell.network),
    }


def files(bench: Bench, model: nn.Module) -> Result:
    """Bytes of the whole file, what is in it, and proof that it is the network again."""
    total = 4 * sum(value.numel() for value in topiarist.load_model(f"zoo:{bench.cell.network}").state_dict().values())
    found: Result = {"dense_bytes": total}
    state = model.state_dict()
    for mode, codec in (("ans", compress), ("paper", paper_format)):
        data, _ = codec.pack(state)
        (bench.folder / f"{mode}.tpcf").write_bytes(data)
        back = codec.unpack(data)
        assert all(torch.equal(back[name], value) for name, value in state.items())
        found[f"{mode}_bytes"] = len(data)
    return found


def deleted(bench: Bench, start: Path) -> Result:
    """Per cent wrong of the held-out and of the test images, by method and fraction kept.

    ``test`` and ``held`` are without training; ``trained`` has ``[held, test]`` at one fraction after it, and
    ``dense`` after as much training of the whole network.
    """
    model, told = bench.model(start), bench.cell.settings
    measured = bench.data.subset(told["images"], seed=bench.cell.seed)

    def errors(each: nn.Module) -> list[float]:
        return [bench.error(each), bench.error(each, bench.whole)]

    found: Result = {"held": {}, "test": {}, "trained": {}, "dense": errors(model)}
    for name in told["methods"]:
        curve = [prune(model, bench.data.example(), name, kept, measured) for kept in told["kept"]]
        pairs = [errors(done.model) for done in curve]
        found["held"][name], found["test"][name] = map(list, zip(*pairs, strict=True))
        done = curve[told["kept"].index(told["trained_on"])]
        bench.fit(done.model, bench.recipe(), name, graph=done.graph, keep=done.keep)
        found["trained"][name] = errors(done.model)
    bench.fit(model, bench.recipe(), "dense")
    found["trained"]["dense"] = errors(model)
    return found


def merged(bench: Bench, start: Path) -> Result:
    """Per cent wrong and weights left, by fraction of neurons kept; merged, and the same neurons merely cut."""
    model = bench.model(start)
    total = sum(p.numel() for p in model.parameters())

    def curve(method: str, repaired: bool) -> list[tuple[float, float]]:
        rows = []
        for kept in bench.cell.settings["kept"]:
            budget = Budget(ratio=kept, exclude=() if bench.cell.network == "lenet300" else ("conv*",))
            done = prune(model, bench.data.example(), method, budget)
            smaller = done.model if repaired else topiarist.cut(model, done.graph, done.keep)
            rows.append((sum(p.numel() for p in smaller.parameters()) / total, bench.error(smaller)))
        return rows

    alone = prune(model, bench.data.example(), "srinivas_babu")
    return {
        "dense": bench.error(model),
        "merged": curve("srinivas_babu", True),
        "cut": curve("srinivas_babu", False),
        "l1": curve("l1", False),
        "random": curve("random", False),
        "mode": (sum(p.numel() for p in alone.model.parameters()) / total, bench.error(alone.model)),
    }


def tickets(bench: Bench) -> Result:
    """Per cent wrong by round: the rewound ticket, and its mask on other initial weights."""
    told = bench.cell.settings
    model = bench.model()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    last = [name for name, value in values.items() if value.ndim > 1][-1]
    bench.fit(model, bench.recipe(), "dense")
    found: Result = {"dense": bench.error(model), "ticket": {}, "other": {}, "left": {}}
    for number in range(1, max(told["rounds"]) + 1):
        # The last layer loses half as much each time, as in the paper.
        slow = (1 + told["rate"]) / 2
        budget = {"ratios": {"*": told["rate"] ** number, last: slow**number}}
        done = prune(
            model, bench.data.example(), topiarist.Pruning.of("magnitude", budget, rewind=True), initial=values
        )
        model = done.model
        masked = {"graph": done.graph, "keep": done.keep}
        bench.fit(model, bench.recipe(), f"ticket{number}", **masked)
        if number in told["rounds"]:
            other = bench.model(shift=OTHER)
            bench.fit(other, bench.recipe(), f"other{number}", **masked)
            found["ticket"][number], found["other"][number] = bench.error(model), bench.error(other)
            found["left"][number] = weights(model, bench.cell.network)["kept"]
    return found


def gated(bench: Bench, start: Path | None = None) -> Result:
    """Trained with gates or noise, and pruned by their own rule; and to the published rate, where the cell has one.

    Where the cell has widths, the network of another one is cut to them first, and trained on. The sparsest network is
    kept, shrunk.
    """
    told, example, name = bench.cell.settings, bench.data.example(), bench.cell.network
    model, result = bench.model(start), Result()
    if widths := told.get("widths"):
        model = bench.cut(model, widths)
        bench.fit(model, bench.recipe("cut"), "cut")
        result["cut"] = bench.error(model)
    method = make(bench.cell.method, **told["fields"])
    graph = topiarist.trace(model, example)
    bench.fit(model, bench.recipe(), method=method, graph=graph)
    done = prune(model, example, method, graph=graph)
    result |= {
        "trained": bench.error(model),
        "error": bench.error(done.model),
        **weights(done.model, name),
        "widths": {group: kept for group, (kept, _) in done.architecture.widths.items()},
    }
    if rate := told.get("rate"):
        left = min(1.0, _weights(bench.model()) / _weights(model) / rate)
        further = prune(model, example, method, left, graph=graph)
        result["at_rate"] = {"error": bench.error(further.model), **weights(further.model, name)}
        done = further
    small = shrink(done.model, example).model
    topiarist.save(small, bench.shape(small), bench.folder / SMALL)
    return result | {"shrunk": bench.widths(small)}


def after(bench: Bench, start: Path) -> Result:
    """What gates or noise left, trained on with its zeros."""
    model, before = loaded(bench, start)
    model = tuned(bench, model, bench.recipe())
    return {"before": before["thinned"], "error": bench.error(model), **weights(model, bench.cell.network)} | {
        "widths": bench.widths(model)
    }


def _weights(model: nn.Module) -> int:
    """How many there are, biases aside."""
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def weights(model: nn.Module, network: str) -> Result:
    """What is left of the dense network's weights, biases aside: of all, and of each layer."""
    whole = [p.numel() for p in topiarist.load_model(f"zoo:{network}").parameters() if p.ndim > 1]
    kept = {name: int(p.count_nonzero()) for name, p in model.named_parameters() if p.ndim > 1}
    return {
        "kept": sum(kept.values()) / sum(whole),
        "weights": sum(kept.values()),
        "layers": {name: count / size for (name, count), size in zip(kept.items(), whole, strict=True)},
    }


STEPS: dict[str, Callable[..., Result]] = {
    "dense": dense, "sparse": sparse, "shared": shared, "deleted": deleted, "merged": merged,
    "tickets": tickets, "gated": gated, "after": after, "record": record,
}  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """Computes cells (see `topiarist.studies.cells.Work`).

    Attributes:
        folder: holds ``mnist.npz``.
        threads: of each process.
    """

    folder: Path
    threads: int

    def __call__(self, cell: Cell, folder: Path, needs: tuple[Path, ...]) -> Result:
        torch.set_num_threads(self.threads)
        whole = topiarist.load_data(f"npz:{self.folder / 'mnist.npz'}")
        data = whole.split(1 / 6) if cell.data.endswith("held") else whole
        result = STEPS[cell.arm](Bench(cell, data, whole, folder), *needs)
        for checkpoint in folder.glob("*.ckpt"):  # which were kept until here, so that a killed cell goes on
            checkpoint.unlink()
        return result

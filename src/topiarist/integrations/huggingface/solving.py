"""Which numbers of a configuration give a network the sizes that it has: solved by building networks.

No table of models is needed. Doubling a number shows which sizes depend on it; the sizes that are wanted then say what
the number must be. Networks are built on the meta device, where they take no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from torch import nn

from topiarist.graph import named_tensors

Path = tuple[str | int, ...]
"""Where a number stands in a configuration: keys of mappings, and positions in lists."""

Values = Mapping[Path, int]
"""Numbers that differ from those of the configuration."""

Build = Callable[[Values], nn.Module]
"""Makes the network of a configuration with other numbers; raises anything where there is none."""

MOST_BUILDS = 200
"""Networks that are built at most; each takes a tenth of a second or less."""


class Size(NamedTuple):
    """Names one size of a network: of an axis of a tensor, or a whole number that a module holds.

    Attributes:
        owner: the tensor or the module.
        attribute: of the module; empty for a tensor.
        entry: the axis, or the position in a tuple or list; -1 for a number by itself.
    """

    owner: str
    attribute: str
    entry: int

    def __str__(self) -> str:
        if not self.attribute:
            return f"axis {self.entry} of {self.owner}"
        return f"{self.owner}.{self.attribute}".strip(".") + (f"[{self.entry}]" if self.entry >= 0 else "")


Sizes = dict[Size, int]


class UnsayableError(Exception):
    """No numbers of a configuration give the sizes that are wanted; the message says which of them."""


def sizes_of(model: nn.Module) -> Sizes:
    """Returns every size of a network: all axes of its tensors, and the whole numbers in its modules.

    Tensors that are not stored with it count as its modules' numbers do: the network's code makes them.
    """
    stored, sizes = model.state_dict(), Sizes()
    for name, tensor in {**named_tensors(model), **stored}.items():
        owner, _, last = name.rpartition(".")
        for axis, length in enumerate(tensor.shape):
            sizes[Size(name, "", axis) if name in stored else Size(owner, last, axis)] = length
    return sizes | {place: value for place, value in numbers_of(model).items() if isinstance(value, int)}


def numbers_of(model: nn.Module) -> dict[Size, int | float]:
    """Returns the numbers that the modules of a network hold, alone and in tuples and lists; no truth values."""
    return {
        Size(name, attribute, entry): number
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        for entry, number in (enumerate(value) if isinstance(value, tuple | list) else [(-1, value)])
        if type(number) in (int, float)
    }


def paths_of(values: object, here: Path = ()) -> dict[Path, int]:
    """Returns the whole numbers above 0 of a configuration, by place; those of lists and nested mappings too."""
    if type(values) is int and values > 0:
        return {here: values}
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return {path: value for key, each in entries for path, value in paths_of(each, (*here, key)).items()}


class Networks:
    """Knows the sizes of the networks that a configuration gives with other numbers; each is built once.

    Args:
        build: makes the network of such a configuration.
    """

    def __init__(self, build: Build) -> None:
        self.build, self.start = build, sizes_of(build({}))
        self._changed: dict[frozenset[tuple[Path, int]], Sizes | None] = {}

    def changed(self, values: Values) -> Sizes | None:
        """Returns the sizes that numbers change, with their new lengths; ``None`` where they give no such network.

        That is where the configuration refuses them, where layers are added or removed, and after too many networks.
        """
        key = frozenset(values.items())
        if key not in self._changed and len(self._changed) < MOST_BUILDS:
            try:
                sizes = sizes_of(self.build(values))
            except Exception:  # a configuration refuses numbers in its own way
                sizes = {}
            same = sizes.keys() == self.start.keys()
            self._changed[key] = {s: n for s, n in sizes.items() if n != self.start[s]} if same else None
        return self._changed.get(key)


def solutions(stated: Values, networks: Networks, wanted: nn.Module, unset: Values | None = None) -> Iterator[Values]:
    """Yields the numbers with which a configuration gives a network all the shapes that are wanted.

    Several may: eight heads of four and four heads of eight have the same shapes.

    Args:
        stated: the numbers that the configuration has.
        networks: those that it gives with other ones.
        wanted: the network whose sizes are wanted; it was cut from one of this configuration.
        unset: numbers that it may state as well, as `unset_fields` returns them.

    Raises:
        UnsayableError: two sizes that the configuration states by one number differ, or tensors are missing.
    """
    search = _Search({**stated, **(unset or {})}, unset or {}, networks, sizes_of(wanted))
    search.check()
    yield from search.explore(search.unset, frozenset())


def unset_fields(configuration: Mapping[str, object], networks: Networks, wanted: nn.Module) -> dict[Path, int]:
    """Returns numbers that a configuration leaves to the network's code, with the values that they have there.

    These are keys without a value, and names that modules give to whole numbers and the configuration does not state.

    Args:
        configuration: as a mapping.
        networks: as for `solutions`.
        wanted: as for `solutions`.
    """
    start, want = networks.start, sizes_of(wanted)
    cut = {size: length for size, length in start.items() if not size.attribute and length != want.get(size)}
    names: dict[str, set[int]] = {name: set() for name, value in configuration.items() if value is None}
    for size, value in start.items():
        if size.attribute and size.attribute not in configuration and size.entry < 0 and value > 0:
            names.setdefault(size.attribute, set()).add(value)
    found: dict[Path, int] = {}
    for name, values in names.items():
        if len(values) > 1 or not cut:
            continue
        probe = 2 * next(iter(values or cut.values()))
        moved = networks.changed({(name,): probe}) or {}
        moved = {size: now for size, now in moved.items() if size in cut}
        values |= {cut[size] for size, now in moved.items() if now == probe}
        for value in values if moved else ():
            if networks.changed({(name,): value}) == {}:
                found[(name,)] = value
    return found


class _Probe(NamedTuple):
    """Another value of one number, and the lengths of the sizes that it changes."""

    value: int
    sizes: Sizes

    def righted(self, size: Size, now: int, want: int, value: int) -> set[int]:
        """Returns what may give a size the length that is wanted: one is exact for sums of products, one for shares."""
        moved = self.sizes[size] - now
        made = {Fraction(value) + Fraction((self.value - value) * (want - now), moved)}
        if moved * (self.value - value) < 0:
            made.add(Fraction(value * now, want or 1))
        return {int(each) for each in made if each.denominator == 1}


@dataclass
class _Search:
    """Sets one number after another, until the sizes are those that are wanted."""

    fields: Values
    unset: Values
    networks: Networks
    want: Sizes
    seen: set[frozenset[tuple[Path, int]]] = field(default_factory=set)

    @cached_property
    def cut(self) -> set[Size]:
        """Returns the sizes that were cut."""
        start = self.networks.start
        return {size for size, length in self.want.items() if start.get(size, length) != length}

    @cached_property
    def probes(self) -> dict[Path, _Probe]:
        """Returns what each number changes, for those that change anything."""
        probes = {path: self._probe(path, self.unset) for path in self.fields}
        return {path: probe for path, probe in probes.items() if probe.sizes}

    def check(self) -> None:
        """Raises where the tensors are others, or sizes that all numbers change alike are wanted unlike."""
        shapes = [{size for size in sizes if not size.attribute} for sizes in (self.networks.start, self.want)]
        if lacking := next(iter(shapes[0] ^ shapes[1]), None):
            raise UnsayableError(f"only one of the two networks has {lacking}")
        known: dict[tuple[int, ...], Size] = {}
        for size, length in self.networks.start.items():
            if size.attribute and size not in self.cut:
                continue  # a number that nothing reads may stay as it was
            alike = (length, *(probe.sizes.get(size, length) for probe in self.probes.values()))
            if set(alike) == {length}:
                if size in self.cut:
                    raise UnsayableError(f"no number of the configuration states {size}")
                continue
            first = known.setdefault(alike, size)
            if self.want[first] != self.want[size]:
                raise UnsayableError(
                    f"{first} is {self.want[first]:,} and {size} is {self.want[size]:,}, where the same numbers state "
                    "both"
                )

    def explore(self, values: Values, fixed: frozenset[Path]) -> Iterator[Values]:
        """Yields what completes some values, and these themselves where the shapes are right.

        Args:
            values: numbers as they are now.
            fixed: those of them that stay.
        """
        values = self._valid(values, fixed)
        state = frozenset(values.items())
        now = self._sizes(values)
        if now is None or state in self.seen:
            return
        self.seen.add(state)
        wrong = [size for size in self.want if size in now and now[size] != self.want[size]]
        hard = [size for size in wrong if not size.attribute or size in self.cut]
        if not hard:
            yield values
        moves = [*self._moves(hard, now, values, fixed), *self._moves(wrong, now, values, fixed)]
        for path, value in dict.fromkeys(moves):
            yield from self.explore({**values, path: value}, fixed | {path})

    def _valid(self, values: Values, fixed: frozenset[Path]) -> Values:
        """Returns values; where these do not go together, some that are still free are 1, which divides all others."""
        free = [path for path in self.probes if path not in fixed]
        for count in range(3):
            for ones in combinations(free, count):
                if self.networks.changed(tried := {**values, **dict.fromkeys(ones, 1)}) is not None:
                    return tried
        return values

    def _moves(self, wrong: list[Size], now: Sizes, values: Values, fixed: frozenset[Path]) -> list[tuple[Path, int]]:
        """Returns values of numbers that would each right a size, those first that are the only one for it."""
        moves: dict[tuple[Path, int], int] = {}
        free = {path: value for path, value in {**self.fields, **values}.items() if path not in fixed}
        probes = {
            path: self._probe(path, values)
            for path in free
            if path in self.probes and not self.probes[path].sizes.keys().isdisjoint(wrong)
        }
        for size in wrong:
            paths = [path for path in probes if size in probes[path].sizes]
            for path in paths:
                for value in probes[path].righted(size, now[size], self.want[size], free[path]) - {free[path]}:
                    if 1 <= value <= 2 * self.fields[path]:
                        moves[path, value] = min(len(paths), moves.get((path, value), len(paths)))
        return sorted(moves, key=lambda move: moves[move])

    def _probe(self, path: Path, values: Values) -> _Probe:
        """Returns what another value of one number changes, one that neither adds nor removes layers."""
        now, value = self._sizes(values) or {}, values.get(path, self.fields[path])
        for other in (2 * value, value // 2 or 2, 3 * value):
            sizes = self._sizes({**values, path: other})
            if sizes is not None:
                return _Probe(other, {size: n for size, n in sizes.items() if n != now[size]})
        return _Probe(value, {})

    def _sizes(self, values: Values) -> Sizes | None:
        changed = self.networks.changed(values)
        return None if changed is None else self.networks.start | changed

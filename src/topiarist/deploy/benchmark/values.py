"""What a bench gives, as frozen values and as plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.measure import Median


@dataclass(frozen=True)
class Network:
    """A network of a bench.

    Attributes:
        name: its name there.
        macs: multiply-accumulates of one example, nonzero weights only; ``None`` where they are not known.
    """

    name: str
    macs: int | None


@dataclass(frozen=True)
class Setting:
    """Where and how networks run.

    Attributes:
        target: the runtime's name.
        threads: of the CPU.
        batch: examples of one run.
    """

    target: str
    threads: int
    batch: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.target}, {threads}, batch {self.batch}"


@dataclass(frozen=True)
class Reading:
    """What was measured of one network in one setting.

    Attributes:
        network: its name.
        setting: where and how it ran.
        latency: of one run, in milliseconds; ``None`` where nothing was measured.
        speedup: the median of each round's time of the first network divided by its time of this one; ``None`` for the
            first network itself.
        efficiency: ``speedup / (MACs of the first network / MACs of this one)``: 1 where all that is saved in MACs is
            saved in time. ``None`` where this network has no fewer MACs, or they are not known.
        bytes: of the file that the runtime reads; for torch, of the parameters and buffers.
        memory: bytes by which the peak memory of a new process grows from before it loads the network until it has run
            a few times; ``None`` where that cannot be measured.
        reason: why nothing was measured; empty where it was.
    """

    network: str
    setting: Setting
    latency: Median | None = None
    speedup: Median | None = None
    efficiency: float | None = None
    bytes: int | None = None
    memory: int | None = None
    reason: str = ""

    @property
    def throughput(self) -> float | None:
        """Returns examples a second: ``1000 · batch / latency``."""
        return None if self.latency is None else 1000 * self.setting.batch / self.latency.value

    @property
    def saves_no_time(self) -> bool:
        """Returns whether fewer MACs take no less time: the interval of the speed-up reaches down to 1."""
        if self.efficiency is None or self.speedup is None:
            return False
        return (self.speedup.value if self.speedup.low is None else self.speedup.low) <= 1


@dataclass(frozen=True)
class Bench:
    """Holds what `topiarist.bench` measured; `print` shows it as a table.

    Attributes:
        networks: the first one is what the others are compared with.
        readings: setting by setting, network by network.
        interrupted: whether it was stopped before the end; what is here was measured before that.
        environment: versions of the runtimes, and the machine.
    """

    networks: tuple[Network, ...]
    readings: tuple[Reading, ...]
    interrupted: bool
    environment: Mapping[str, str]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Returns the settings, in their order."""
        return tuple(dict.fromkeys(reading.setting for reading in self.readings))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`, with the throughputs."""
        readings = [{**asdict(reading), "throughput": reading.throughput} for reading in self.readings]
        return {
            "networks": [asdict(network) for network in self.networks],
            "readings": readings,
            "interrupted": self.interrupted,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, value: Any) -> Bench:
        """Inverts `to_json`.

        Raises:
            TopiaristError: the value is no bench.
        """
        try:
            return cls(
                tuple(Network(**network) for network in value["networks"]),
                tuple(map(_reading, value["readings"])),
                value["interrupted"],
                dict(value["environment"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TopiaristError("this is no bench: give the values of a bench.json") from error

    def __str__(self) -> str:
        from topiarist.deploy.benchmark.table import text

        return text(self)


def _reading(value: Mapping[str, Any]) -> Reading:
    fields = {key: entry for key, entry in value.items() if key != "throughput"}
    medians = {key: None if fields[key] is None else Median(**fields[key]) for key in ("latency", "speedup")}
    return Reading(**{**fields, **medians, "setting": Setting(**fields["setting"])})


def readings_of(
    networks: Sequence[Network], setting: Setting, times: Sequence[Mapping[str, float]], others: Mapping[str, Any]
) -> list[Reading]:
    """Returns the readings of one setting.

    Args:
        networks: all of the bench.
        setting: where and how they ran.
        times: of each round, name → seconds; networks that did not run are absent.
        others: name → the other fields of its reading.
    """
    first, readings = networks[0], []
    for network in networks:
        known = others.get(network.name, {})
        if not times or network.name not in times[0]:
            readings.append(Reading(network.name, setting, **known))
            continue
        latency = Median.of([seconds[network.name] for seconds in times]).scaled(1000)
        speedup = None
        if network != first and first.name in times[0]:
            speedup = Median.of([seconds[first.name] / max(seconds[network.name], 1e-9) for seconds in times])
        efficiency = _efficiency(first, network, speedup)
        readings.append(Reading(network.name, setting, latency, speedup, efficiency, **known))
    return readings


def _efficiency(first: Network, network: Network, speedup: Median | None) -> float | None:
    if speedup is None or not first.macs or not network.macs or network.macs >= first.macs:
        return None
    return speedup.value * network.macs / first.macs

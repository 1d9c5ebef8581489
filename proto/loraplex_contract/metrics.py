"""What a process counts about itself: metrics declared as data, and cheap numbers behind them.

One thread owns a table: nothing here takes a lock, so counting costs a fifth of a microsecond where a client library's
metric costs one or two. ``collect`` is called on the owner's thread; ``metrics_endpoint`` makes the text elsewhere.
"""

import bisect
import dataclasses
import enum
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

Labels: TypeAlias = tuple[str, ...]


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric as ``docs/metrics.md`` lists it."""

    name: str
    """As scraped; a counter's ends in ``_total``. A histogram adds ``_bucket``, ``_sum`` and ``_count``."""
    kind: Kind
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, ascending, without infinity."""

    def __post_init__(self) -> None:
        assert (self.kind is Kind.COUNTER) <= self.name.endswith("_total"), self.name
        assert (self.kind is Kind.HISTOGRAM) == bool(self.buckets), self.name
        assert list(self.buckets) == sorted(set(self.buckets)), self.name


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram's series: how many values were at most each bound, with infinity last."""

    cumulative: tuple[int, ...]
    total: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A copy of one metric's series, safe to hand to another thread."""

    spec: MetricSpec
    label_names: Labels
    numbers: Mapping[Labels, float] = dataclasses.field(default_factory=dict)
    distributions: Mapping[Labels, Distribution] = dataclasses.field(default_factory=dict)


class Number:
    """A counter or a gauge: one number for each set of label values."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec: Final = spec
        self._values: dict[Labels, float] = {} if spec.labels else {(): 0}

    def add(self, amount: float = 1, *labels: str) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def set(self, value: float, *labels: str) -> None:
        assert self.spec.kind is Kind.GAUGE, self.spec.name
        self._values[labels] = value

    def follow(self, total: float, *labels: str) -> None:
        """A counter whose total somebody else keeps."""
        assert total >= self._values.get(labels, 0), (self.spec.name, labels, total)
        self._values[labels] = total

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0)

    def replace(self, values: Mapping[Labels, float]) -> None:
        """All series at once: one that is not among them is gone."""
        assert self.spec.kind is Kind.GAUGE, self.spec.name
        self._values = dict(values)

    def drop(self, first: Labels) -> None:
        """Forget the series whose label values begin so."""
        self._values = {labels: value for labels, value in self._values.items() if labels[: len(first)] != first}

    def copy(self) -> dict[Labels, float]:
        assert all(len(labels) == len(self.spec.labels) for labels in self._values), self.spec.name
        return dict(self._values)


class Series:
    """One histogram's counts for one set of label values. Hot loops keep a reference to it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def copy(self) -> Distribution:
        return Distribution(cumulative=tuple(itertools.accumulate(self._counts)), total=self._total)


class Histogram:
    """Distributions by label values."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec: Final = spec
        self._series: dict[Labels, Series] = {} if spec.labels else {(): Series(spec.buckets)}

    def series(self, *labels: str) -> Series:
        found = self._series.get(labels)
        if found is None:
            assert len(labels) == len(self.spec.labels), (self.spec.name, labels)
            found = self._series[labels] = Series(self.spec.buckets)
        return found

    def observe(self, value: float, *labels: str) -> None:
        self.series(*labels).observe(value)

    def copy(self) -> dict[Labels, Distribution]:
        return {labels: series.copy() for labels, series in self._series.items()}


class MetricTable:
    """The metrics of one list of specs.

    Args:
        constant: labels with one value for the whole process, put before the metric's own.
    """

    def __init__(self, specs: Iterable[MetricSpec], *, constant: Mapping[str, str] | None = None) -> None:
        self._constant = dict(constant or {})
        self._numbers: dict[str, Number] = {}
        self._histograms: dict[str, Histogram] = {}
        for spec in specs:
            assert spec.name not in self._numbers | self._histograms, spec.name
            if spec.kind is Kind.HISTOGRAM:
                self._histograms[spec.name] = Histogram(spec)
            else:
                self._numbers[spec.name] = Number(spec)

    def number(self, name: str) -> Number:
        return self._numbers[name]

    def histogram(self, name: str) -> Histogram:
        return self._histograms[name]

    def collect(self) -> list[Family]:
        """On the owner's thread."""
        families = []
        first = tuple(self._constant.values())
        for number in self._numbers.values():
            values = {(*first, *labels): value for labels, value in number.copy().items()}
            families.append(Family(spec=number.spec, label_names=self._names(number.spec), numbers=values))
        for histogram in self._histograms.values():
            series = {(*first, *labels): copy for labels, copy in histogram.copy().items()}
            families.append(Family(spec=histogram.spec, label_names=self._names(histogram.spec), distributions=series))
        return families

    def _names(self, spec: MetricSpec) -> Labels:
        return (*self._constant, *spec.labels)


def doubling(first: float, last: float) -> tuple[float, ...]:
    """Bounds from ``first`` to ``last`` at least, each twice the one before, to six digits."""
    count = math.ceil(math.log2(last / first)) + 1
    return tuple(float(f"{first * 2**power:.6g}") for power in range(count))

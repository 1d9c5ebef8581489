"""Reads /metrics as a collector does."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One answer of one process."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            self.text = answer.read().decode()
        self.samples = [sample for family in text_string_to_metric_families(self.text) for sample in family.samples]

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 if there is none."""
        wanted = labels.items()
        return sum(sample.value for sample in self.samples if sample.name == name and wanted <= sample.labels.items())

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Non-zero samples, summed over all other labels."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self.samples:
            if sample.name == name and sample.value:
                key = tuple(sample.labels[label] for label in labels)
                found[key] = found.get(key, 0) + sample.value
        return found

"""docs/monitoring.md says of the metrics what the code says."""

import re
from pathlib import Path

from services.common.telemetry.catalogue import CATALOGUE, Metric

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "monitoring.md").read_text()


def row(metric: Metric) -> str:
    """A metric's line in the table."""
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def test_the_table_is_the_catalogue() -> None:
    """Every metric has its line, word for word, and there is no other line."""
    assert re.findall(r"^\| `diptych_.*$", PAGE, re.MULTILINE) == [row(metric) for metric in CATALOGUE]


def test_every_metric_named_exists() -> None:
    """What queries and hints name is a metric or one of its series."""
    known = {metric.name for metric in CATALOGUE} | {series for metric in CATALOGUE for series in metric.series}
    assert set(re.findall(r"\bdiptych_[a-z0-9_]+", PAGE)) - known == set()

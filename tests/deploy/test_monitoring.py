"""The monitoring component speaks of metrics that exist, and its alerts fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.telemetry.catalogue import CATALOGUE, Metric
from tests.deploy.manifests import K8S, ROOT

COMPONENT = K8S / "components" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
BY_SERIES: dict[str, Metric] = {series: metric for metric in CATALOGUE for series in metric.series}
FROM_OUTSIDE = {"job", "namespace", "pod", "le"}  # labels that the scraper and histograms add


def rules() -> dict[str, Any]:
    """What the PrometheusRule says, as a rules file."""
    documents = yaml.safe_load_all((COMPONENT / "rules.yaml").read_text())
    spec: dict[str, Any] = next(document for document in documents if document["kind"] == "PrometheusRule")["spec"]
    return spec


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in rules()["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    """All PromQL in the components: alerts, panels, and what KEDA scales by."""
    panels = json.loads((COMPONENT / "diptych.json").read_text())["panels"]
    scaled = yaml.safe_load_all((K8S / "components" / "keda" / "scaledobjects.yaml").read_text())
    triggers = [trigger["metadata"] for document in scaled for trigger in document["spec"]["triggers"]]
    return [
        *(rule["expr"] for rule in alerts()),
        *(target["expr"] for panel in panels for target in panel["targets"]),
        *(trigger["query"] for trigger in triggers if "query" in trigger),
    ]


def unknown(query: str) -> list[str]:
    """Series that no metric has, and labels that the metric before them has not."""
    found = [name for name in re.findall(r"\bdiptych_[a-z0-9_]+", query) if name not in BY_SERIES]
    for name, selector in re.findall(r"\b(diptych_[a-z0-9_]+)\{([^}]*)\}", query):
        labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))
        known = set(BY_SERIES[name].labels) if name in BY_SERIES else set()
        found += sorted(f"{name}{{{label}}}" for label in labels - known - FROM_OUTSIDE)
    return found


def test_queries_name_what_exists() -> None:
    """Every series and label in rules, dashboard and scalers is one that the services have."""
    assert len(queries()) > 30
    assert [(query, problems) for query in queries() if (problems := unknown(query))] == []


@pytest.mark.parametrize(
    "query",
    ["rate(diptych_decoder_tokens_total[5m])", 'diptych_cache_errors_total{tenant="a"}', "diptych_build_info_bucket"],
)
def test_a_wrong_name_is_seen(query: str) -> None:
    """A series or a label that does not exist would fail the test above."""
    assert unknown(query) != []


def test_every_alert_has_a_runbook() -> None:
    """The link is to the section named after the alert, and severities are two."""
    wanted = {rule["alert"]: f"docs/operations.md#alert-{rule['alert'].lower()}" for rule in alerts()}
    assert {rule["alert"]: rule["annotations"]["runbook_url"] for rule in alerts()} == wanted
    assert {rule["labels"]["severity"] for rule in alerts()} == {"critical", "warning"}


def test_every_runbook_is_written() -> None:
    """Each alert has its section in docs/operations.md: a heading such as "Alert DiptychDown", or an anchor."""
    page = OPERATIONS.read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    anchors |= set(re.findall(r'id="([^"]+)"', page))
    assert {f"alert-{rule['alert'].lower()}" for rule in alerts()} - anchors == set()


def test_the_dashboard_is_whole() -> None:
    """Panels have ids of their own, do not overlap, and take their data from the chosen source."""
    panels = json.loads((COMPONENT / "diptych.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_every_alert_has_series_that_fire_it() -> None:
    """No alert is left out of what promtool is asked."""
    cases = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in alerts()}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("command", [["check", "rules", "rules.yaml"], ["test", "rules", "alerts.yaml"]], ids=" ".join)
def test_promtool_agrees(command: list[str], tmp_path: Path) -> None:
    """The rules are well formed, and fire on the series in alerts.yaml when they should and not before."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    shutil.copy(Path(__file__).with_name("alerts.yaml"), tmp_path)
    result = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

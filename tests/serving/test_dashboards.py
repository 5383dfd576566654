"""What Prometheus collects, Grafana shows and the alerts watch."""

from __future__ import annotations

import itertools
import json
import re

import deployment
import numpy as np
import prometheus_client
import promql_parser as promql
import pytest
import servers
from deployment import SERVING

from branchy_tf.serving import ClientMetrics, EarlyExitClient

# {metric: (kind, labels)}, as they are declared in tensorflow_serving/ and
# tensorflow/cc/saved_model/; the exporter writes "/" as ":".
TF_SERVING = {
    ":tensorflow:serving:request_count": ("counter", {"model_name", "status"}),
    ":tensorflow:serving:request_latency": (
        "histogram",
        {"model_name", "API", "entrypoint"},
    ),
    ":tensorflow:serving:runtime_latency": (
        "histogram",
        {"model_name", "API", "runtime"},
    ),
    ":tensorflow:serving:model_warmup_latency": ("histogram", {"model_path", "status"}),
    # Declared with thread_pool_name, which is always empty: nothing may select by it.
    ":tensorflow:serving:batching_session:queuing_latency": ("histogram", set()),
    ":tensorflow:serving:batching_session:wrapped_run_count": ("counter", set()),
    ":tensorflow:cc:saved_model:load_attempt_count": (
        "counter",
        {"model_path", "status"},
    ),
}
# What clients count.
CLIENT = {
    "branchy_client_requests_total": ("counter", {"model", "method", "code"}),
    "branchy_client_request_seconds": ("histogram", {"model", "method"}),
    "branchy_client_exits_total": ("counter", {"model", "exit"}),
    "branchy_client_score": ("histogram", {"model", "exit"}),
}
KNOWN = TF_SERVING | CLIENT | {"up": ("gauge", {"job", "instance"})}


def dashboard():
    return json.loads(
        (SERVING / "monitoring/grafana/dashboards/branchy.json").read_text("utf-8")
    )


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alerts():
    (rules,) = deployment.load("monitoring/alerts.yml")
    return [rule for group in rules["groups"] for rule in group["rules"]]


def expressions():
    """`{where: PromQL}` of every panel, annotation and alert."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }
    found |= {note["name"]: note["expr"] for note in dashboard()["annotations"]["list"]}
    found |= {alert["alert"]: alert["expr"] for alert in alerts()}
    return found


EXPRESSIONS = expressions()


def nodes(expression, kind):
    """What of one kind an expression is made of; raises if it is not PromQL."""
    found = []

    def visit(node):
        if isinstance(node, kind):
            found.append(node)

    # Grafana's variable stands for a range.
    promql.walk(promql.parse(str(expression).replace("$__rate_interval", "1m")), visit)
    return found


def metric(name):
    """The kind and labels of a metric, from its name in an expression."""
    if name in KNOWN:
        assert KNOWN[name][0] != "histogram", f"{name} alone is no series"
        return KNOWN[name]
    base, _, part = name.rpartition("_")
    kind, labels = KNOWN[base]
    assert (kind, part) in {("histogram", p) for p in ("bucket", "sum", "count")}, name
    return kind, labels | ({"le"} if part == "bucket" else set())


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_metrics_and_labels_are_published(where):
    selectors = nodes(EXPRESSIONS[where], promql.VectorSelector)
    assert selectors
    for selector in selectors:
        _, published = metric(selector.name)
        assert {matcher.name for matcher in selector.matchers.matchers} <= published
    for sum_ in nodes(EXPRESSIONS[where], promql.AggregateExpr):
        kept = set(sum_.modifier.labels) if sum_.modifier else set()
        for selector in nodes(sum_.expr, promql.VectorSelector):
            assert kept <= metric(selector.name)[1]


def test_quantiles_are_of_rates_of_buckets():
    calls = [call for text in EXPRESSIONS.values() for call in nodes(text, promql.Call)]
    quantiles = [call for call in calls if call.func.name == "histogram_quantile"]
    assert quantiles
    for call in quantiles:
        _, buckets = call.args
        assert "le" in buckets.modifier.labels
        assert buckets.expr.func.name == "rate"
        (selector,) = nodes(buckets, promql.VectorSelector)
        assert selector.name.endswith("_bucket")


def test_microseconds_become_seconds():
    for panel in panels():
        for target in panel["targets"]:
            if re.search(r":tensorflow:\S+_latency", target["expr"]):
                assert target["expr"].endswith(" / 1e6"), panel["title"]
                assert panel["fieldConfig"]["defaults"]["unit"] == "s"


def test_the_dashboard_shows_what_it_is_for():
    shown = {
        selector.name
        for text in EXPRESSIONS.values()
        for selector in nodes(text, promql.VectorSelector)
    }
    for name, (kind, _) in (TF_SERVING | CLIENT).items():
        assert (f"{name}_bucket" in shown or f"{name}_sum" in shown) == (
            kind == "histogram"
        ), name
        assert (name in shown) == (kind == "counter"), name


def test_the_client_publishes_what_is_shown(fake):
    registry = prometheus_client.CollectorRegistry()
    metrics = ClientMetrics(registry)
    with EarlyExitClient(fake.address, servers.MODEL, metrics=metrics) as client:
        client.predict(np.zeros((2, 28, 28, 1), np.uint8), thresholds=[0.1])
    samples = {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
    }
    for name, (kind, labels) in CLIENT.items():
        if kind == "histogram":
            assert samples[f"{name}_bucket"] == labels | {"le"}
        else:
            assert samples[name] == labels


def test_panels_do_not_overlap():
    taken = set()
    everything = dashboard()["panels"]
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(
            itertools.product(
                range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)


def test_the_dashboard_uses_the_provisioned_source():
    (provisioned,) = deployment.load(
        "monitoring/grafana/provisioning/datasources/prometheus.yml"
    )
    (source,) = provisioned["datasources"]
    expected = {"type": source["type"], "uid": source["uid"]}
    variables = dashboard()["templating"]["list"]
    for asking in [*panels(), *variables, *dashboard()["annotations"]["list"]]:
        assert asking["datasource"] == expected
    for panel in panels():
        assert all(target["datasource"] == expected for target in panel["targets"])
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    service = deployment.compose()["services"][host]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_dashboard_starts_with_the_model_of_models_config():
    (variable,) = dashboard()["templating"]["list"]
    assert variable["name"] == "model"
    assert variable["current"]["value"] == deployment.model().name
    query = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"])
    assert query[2] in TF_SERVING[query[1]][1]
    used = {
        name
        for text in EXPRESSIONS.values()
        for name in re.findall(r"\$(\w+)", text.replace("$labels", ""))
    }
    assert used <= {"model", "__rate_interval"}


def test_files_are_mounted_where_they_are_read():
    services = deployment.compose()["services"]
    inside = {
        target: (SERVING / mount["source"], mount["read_only"])
        for name in ("prometheus", "grafana")
        for mount in services[name]["volumes"]
        if mount["type"] == "bind"
        for target in [mount["target"]]
    }
    assert all(source.is_dir() and read_only for source, read_only in inside.values())
    (flag,) = (f for f in services["prometheus"]["command"] if "config.file" in f)
    folder, _, file = flag.removeprefix("--config.file=").rpartition("/")
    assert (inside[folder][0] / file).is_file()
    (config,) = deployment.load("monitoring/prometheus.yml")
    for name in config["rule_files"]:
        assert (inside[folder][0] / name).is_file()
    (provisioned,) = deployment.load(
        "monitoring/grafana/provisioning/dashboards/branchy.yml"
    )
    (provider,) = provisioned["providers"]
    dashboards, _ = inside[provider["options"]["path"]]
    assert [path.name for path in dashboards.iterdir()] == ["branchy.json"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/branchy.json"


def test_queried_jobs_are_scraped():
    (config,) = deployment.load("monitoring/prometheus.yml")
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    asked = {
        matcher.value
        for text in EXPRESSIONS.values()
        for selector in nodes(text, promql.VectorSelector)
        for matcher in selector.matchers.matchers
        if matcher.name == "job"
    }
    assert asked
    assert asked <= jobs


def test_alerts_say_what_is_wrong():
    for alert in alerts():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in {"page", "ticket"}
        kept = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        for selector in nodes(alert["expr"], promql.VectorSelector):
            assert kept <= metric(selector.name)[1], alert["alert"]

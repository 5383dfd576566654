"""What Prometheus collects, Grafana shows and the alerts watch."""

from __future__ import annotations

import itertools
import json
import re

import deployment
import numpy as np
import prometheus_client
import pytest
import servers
from deployment import SERVING

from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.metrics import ClientMetrics

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
    ":tensorflow:serving:batching_session:queuing_latency": (
        "histogram",
        {"thread_pool_name"},
    ),
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
FUNCTIONS = {"abs", "histogram_quantile", "increase", "rate", "scalar", "sum"}


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


def plain(expression):
    """Without what stands in quotes, which may hold brackets of its own."""
    return re.sub(r'"[^"]*"', '""', expression)


def selected(expression):
    """`[(metric with its suffix, labels selected by)]` in an expression."""
    skipped = (
        r"\b(by|on|group_left) \([^)]*\)|\[[^]]*\]|offset \w+|\b\d[\w.]*|\b(or|unless)\b"
    )
    bare = re.sub(skipped, "", plain(expression))
    return [
        (name, set(re.findall(r"(\w+)[=!]", labels)))
        for name, labels in re.findall(r"([a-z:][\w:]*)(\{[^}]*\})?", bare)
        if name not in FUNCTIONS
    ]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_metrics_and_labels_are_published(where):
    expression = EXPRESSIONS[where]
    labels_there = set()
    uses = selected(expression)
    assert uses
    for name, labels in uses:
        base = re.sub(r"_(bucket|sum|count)$", "", name) if name not in KNOWN else name
        kind, published = KNOWN[base]
        # Only a histogram has these, and it has nothing else.
        assert (base != name) == (kind == "histogram"), name
        assert labels <= published, name
        labels_there |= published | ({"le"} if name.endswith("_bucket") else set())
    for grouped in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expression):
        names = {name.strip() for name in grouped.split(",") if name.strip()}
        assert names <= labels_there


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_expressions_are_well_formed(where):
    expression = plain(EXPRESSIONS[where])
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    # A range belongs to these, and they to a range.
    counted = re.findall(
        r"\b(?:rate|increase)\([^()]*\[\w+\][^()]*\)", ranged(expression)
    )
    assert len(counted) == expression.count("[")
    assert len(counted) == len(re.findall(r"\b(?:rate|increase)\(", expression))
    # A quantile is taken over the buckets' limits.
    taken = re.findall(r"histogram_quantile\(0\.\d+, sum by \(le\b", expression)
    assert len(taken) == expression.count("histogram_quantile")


def ranged(expression):
    """With Grafana's variable as a range that Prometheus could read."""
    return expression.replace("$__rate_interval", "1m")


def test_microseconds_become_seconds():
    for panel in panels():
        for target in panel["targets"]:
            if re.search(r":tensorflow:\S+_latency", target["expr"]):
                assert target["expr"].endswith(" / 1e6"), panel["title"]
                assert panel["fieldConfig"]["defaults"]["unit"] == "s"


def test_the_dashboard_shows_what_it_is_for():
    shown = {name for text in EXPRESSIONS.values() for name, _ in selected(text)}
    for name, (kind, _) in (TF_SERVING | CLIENT).items():
        assert (f"{name}_bucket" in shown or f"{name}_sum" in shown) == (
            kind == "histogram"
        ), name
        assert (name in shown) == (kind == "counter"), name


def test_the_client_publishes_what_is_shown(fake):
    registry = prometheus_client.CollectorRegistry()
    metrics = ClientMetrics(registry)
    with EarlyExitClient(fake.address, servers.MODEL, metrics=metrics) as client:
        client.predict(np.zeros((2, 28, 28, 1), np.uint8))
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


def test_panels_lie_side_by_side():
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


def test_the_dashboard_asks_the_source_that_is_provisioned():
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


def test_jobs_that_are_asked_about_are_collected():
    (config,) = deployment.load("monitoring/prometheus.yml")
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    asked = {
        job
        for text in EXPRESSIONS.values()
        for job in re.findall(r'\bjob="([^"]+)"', text)
    }
    assert asked
    assert asked <= jobs


def test_alerts_say_what_is_wrong():
    for alert in alerts():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in {"page", "ticket"}
        kept = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        published = set().union(
            *(
                KNOWN[re.sub(r"_bucket$", "", name)][1]
                for name, _ in selected(alert["expr"])
            )
        )
        assert kept <= published, alert["alert"]

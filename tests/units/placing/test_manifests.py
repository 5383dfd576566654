"""Manifests say what the placement says, and the gateway reads its files."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from deployment import KNOWN_FLAGS
from google.protobuf import text_format
from small_topology import TEXT
from tensorflow_serving.config import model_server_config_pb2

from branchy_tf import units
from branchy_tf.errors import BranchyError
from branchy_tf.units import configs
from branchy_tf.units.placing import manifests, reading


@pytest.fixture(scope="module")
def topology():
    value = yaml.safe_load(TEXT)
    points = [{"exit_rates": [0.7, 0.3], "thresholds": [0.00001]}]
    value["cascades"]["digits"] = {"units": ["device", "cloud"], "points": points}
    return reading.parse(value)


@pytest.fixture(scope="module")
def placement(topology):
    return units.place(None, topology)


@pytest.fixture(scope="module")
def folder(placement, topology, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifests")
    manifests.write(placement, topology, folder)
    return folder


@pytest.fixture(scope="module")
def objects(folder):
    text = (folder / "kubernetes.yaml").read_text(encoding="utf-8")
    found = list(yaml.safe_load_all(text))
    named = {(x["kind"], x["metadata"]["name"]): x for x in found}
    assert len(named) == len(found)
    return named


def test_every_pod_runs_at_its_site_with_its_files(objects, placement):
    sites = {name for name, site in placement.sites.items() if site["units"]}
    pods = {name: x for (kind, name), x in objects.items() if kind == "Deployment"}
    assert set(pods) == {f"serving-{site}" for site in sites} | {"gateway-digits-camera"}
    for name, found in pods.items():
        spec = found["spec"]["template"]["spec"]
        assert spec["nodeSelector"] == {"branchy-cascade/site": name.rsplit("-", 1)[1]}
        assert ("ConfigMap", name) in objects
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert found["spec"]["selector"]["matchLabels"].items() <= labels.items()
        service = objects["Service", name]["spec"]
        assert service["selector"].items() <= labels.items()
        (container,) = spec["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports


def test_servers_serve_their_units_with_known_flags(objects, placement):
    for name, site in placement.sites.items():
        if not site["units"]:
            continue
        text = objects["ConfigMap", f"serving-{name}"]["data"]["models.config"]
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        served = [model.name for model in config.model_config_list.config]
        assert served == site["units"]
        pod = objects["Deployment", f"serving-{name}"]["spec"]["template"]["spec"]
        flags = {x.removeprefix("--").split("=")[0] for x in pod["containers"][0]["args"]}
        assert flags <= KNOWN_FLAGS
        # TF Serving cannot split the features of a merged batch.
        assert "enable_batching" not in flags


def test_the_gateway_reads_its_cascade(objects, folder, placement):
    path = folder / "gateway-digits-camera/cascade.yaml"
    text = objects["ConfigMap", "gateway-digits-camera"]["data"]["cascade.yaml"]
    assert path.read_text(encoding="utf-8") == text
    found = configs.load(path)
    assert found.chains == {"digits": ("device", "cloud")}
    assert found.units["device"].thresholds == pytest.approx((0.00001,))
    for unit, site in placement.assignments[0].units.items():
        (target,) = found.units[unit].targets
        assert target.server == f"serving-{site}:8500"
        assert ("Service", f"serving-{site}") in objects


def test_compose_has_the_same_parts(folder, objects):
    text = (folder / "docker-compose.yml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    assert set(services) == {name for kind, name in objects if kind == "Deployment"}
    for name, service in services.items():
        assert (folder / name).is_dir()
        assert set(service.get("depends_on", [])) <= set(services)
    published = [port for x in services.values() for port in x.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_refuses_what_cannot_be_carried_out(topology, placement, tmp_path):
    direct = dataclasses.replace(topology, relay="direct")
    with pytest.raises(BranchyError, match="relay: gateway"):
        manifests.write(placement, direct, tmp_path)
    text = TEXT.replace("camera", "Camera 1")
    named = reading.parse(yaml.safe_load(text))
    with pytest.raises(BranchyError, match="'Camera 1' is not valid in Kubernetes"):
        manifests.write(units.place(None, named), named, tmp_path)
    assert not list(tmp_path.iterdir())

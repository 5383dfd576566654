"""Carries a placement out: Kubernetes manifests and a Compose file.

Each site with units gets a TF Serving with a models.config of its units; each demand gets
a gateway at its site with a cascade.yaml that says where its units run.
"""

from __future__ import annotations

import math
import pathlib
import re
from typing import Any

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.units.placing.placement import Assignment, Placement, ways_of
from branchy_tf.units.placing.topology import DIRECT, Topology
from branchy_tf.units.placing.ways import Network

# The node of a site has this label: kubectl label node NODE branchy-cascade/site=SITE
NODE_LABEL = "branchy-cascade/site"
SERVING_IMAGE = "tensorflow/serving:2.21.0"
GATEWAY_IMAGE = "branchy-gateway:latest"
CLAIM = "branchy-units"
# What a label of DNS, and so a Service, may be called.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?\Z")
_GRPC, _REST = 8500, 8501
_USER = 10001
# Memory of a server besides its units, and during a swap of versions.
_SERVER_MB = 512
_COPIES = 3
_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def write(
    placement: Placement,
    topology: Topology,
    folder: files.Path,
    *,
    serving_image: str = SERVING_IMAGE,
    gateway_image: str = GATEWAY_IMAGE,
) -> list[pathlib.Path]:
    """Writes the manifests of a placement.

    Args:
        placement: of the topology.
        topology: what was placed.
        folder: receives kubernetes.yaml, docker-compose.yml and a folder of configuration
            for each server and gateway.
        serving_image: of TF Serving.
        gateway_image: with branchy_tf and the extra `cascade`.

    Returns:
        The paths of the files.

    Raises:
        BranchyError: units send rows to each other, the placement is of another
            topology, or a name is not valid in Kubernetes.
    """
    if topology.relay == DIRECT:
        raise BranchyError(
            "Manifests need a placement with `relay: gateway`: TF Serving does not send "
            "rows on by itself. Place it anew."
        )
    ways_of(Network(topology), placement)
    held = {
        name: list(site["units"])
        for name, site in placement.sites.items()
        if site["units"]
    }
    for what, names in (
        ("site", {*held, *(entry.site for entry in placement.assignments)}),
        ("cascade", {entry.cascade for entry in placement.assignments}),
    ):
        for name in sorted(names):
            _check(what, name)
    configs = {f"serving-{site}": _models(units) for site, units in held.items()}
    for entry in placement.assignments:
        configs[_gateway(entry)] = {"cascade.yaml": _cascade(entry)}
    objects: list[dict[str, Any]] = [_claim()]
    services: dict[str, Any] = {}
    for site, units in held.items():
        name = f"serving-{site}"
        cores = topology.sites[site].cores
        memory = _SERVER_MB + math.ceil(
            _COPIES * sum(topology.units[unit].memory_mb for unit in units)
        )
        objects += [
            _config_map(name, configs[name]),
            _serving(name, site, cores, memory, serving_image),
            _service(name),
        ]
        services[name] = _composed_serving(name, cores, memory, serving_image)
    for i, entry in enumerate(placement.assignments):
        name = _gateway(entry)
        objects += [
            _config_map(name, configs[name]),
            _gateway_deployment(name, entry.site, gateway_image),
            _service(name),
        ]
        servers = sorted({f"serving-{site}" for site in entry.units.values()})
        services[name] = _composed_gateway(name, _GRPC + 10 + i, servers, gateway_image)
    return _write(files.folder(folder), objects, services, configs)


def _write(
    folder: pathlib.Path,
    objects: list[dict[str, Any]],
    services: dict[str, Any],
    configs: dict[str, dict[str, str]],
) -> list[pathlib.Path]:
    import yaml

    nodes = (
        "# kubectl apply -f kubernetes.yaml -n NAMESPACE\n"
        "# The nodes of a site carry its name:\n"
        f"#   kubectl label node NODE {NODE_LABEL}=SITE\n"
        f"# The claim {CLAIM} holds what `cascade export` wrote.\n"
    )
    composed = (
        "# The whole placement on one machine:\n"
        "#   UNITS_DIR=/where/units/are docker compose up --detach --wait\n"
    )
    # Without references between equal parts, which nobody wants to read.
    dumper: Any = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    texts = {
        "kubernetes.yaml": nodes + yaml.dump_all(objects, Dumper=dumper, sort_keys=False),
        "docker-compose.yml": composed
        + yaml.dump(
            {"name": "branchy-cascade", "services": services},
            Dumper=dumper,
            sort_keys=False,
        ),
    }
    for name, entries in configs.items():
        for file, text in entries.items():
            texts[f"{name}/{file}"] = text
    paths = []
    for path, text in texts.items():
        files.write_text(folder / path, text)
        paths.append(folder / path)
    return paths


def _check(what: str, name: str) -> None:
    if not _NAME.match(name):
        raise BranchyError(
            f"The name of {what} {name!r} is not valid in Kubernetes; expected lowercase "
            "letters, digits and '-', beginning with a letter, at most 47."
        )


def _gateway(entry: Assignment) -> str:
    return f"gateway-{entry.cascade}-{entry.site}"[:63].rstrip("-")


def _models(units: list[str]) -> dict[str, str]:
    """The models.config of a server. Units are served without batching."""
    entries = "".join(
        "  config {\n"
        f'    name: "{unit}"\n'
        f'    base_path: "/models/{unit}"\n'
        '    model_platform: "tensorflow"\n'
        "  }\n"
        for unit in units
    )
    return {"models.config": f"model_config_list {{\n{entries}}}\n"}


def _cascade(entry: Assignment) -> str:
    """The cascade.yaml of a gateway."""
    import yaml

    names = list(entry.units)
    units: dict[str, Any] = {}
    for i, (name, site) in enumerate(entry.units.items()):
        units[name] = {"servers": [f"serving-{site}:{_GRPC}"]}
        if i + 1 < len(names):
            units[name]["next"] = names[i + 1]
    if entry.thresholds is not None:
        units[names[0]]["thresholds"] = list(entry.thresholds)
    value = {"model": entry.cascade, "on_failure": "answer", "units": units}
    return yaml.safe_dump(value, sort_keys=False)


def _labels(name: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": "branchy-cascade",
    }


def _config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": _labels(name)},
        "data": data,
    }


def _service(name: str) -> dict[str, Any]:
    port = {
        "name": "grpc",
        "port": _GRPC,
        "targetPort": "grpc",
        "appProtocol": "kubernetes.io/h2c",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {"selector": {"app.kubernetes.io/name": name}, "ports": [port]},
    }


def _claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "labels": _labels(CLAIM)},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }


def _deployment(
    name: str, site: str, container: dict[str, Any], volumes: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {
                "metadata": {"labels": _labels(name)},
                "spec": {
                    "nodeSelector": {NODE_LABEL: site},
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 40,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": _USER,
                        "runAsGroup": _USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [
                        {"name": "config", "configMap": {"name": name}},
                        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
                        *volumes,
                    ],
                },
            },
        },
    }


def _serving_flags(cores: int) -> list[str]:
    return [
        f"--port={_GRPC}",
        f"--rest_api_port={_REST}",
        "--model_config_file=/etc/serving/models.config",
        "--model_config_file_poll_wait_seconds=10",
        "--tensorflow_intra_op_parallelism=1",
        f"--tensorflow_inter_op_parallelism={cores}",
        f"--grpc_max_threads={max(8, 4 * cores)}",
    ]


def _serving(name: str, site: str, cores: int, memory: int, image: str) -> dict[str, Any]:
    container = {
        "name": "serving",
        "image": image,
        "command": ["tensorflow_model_server"],
        "args": _serving_flags(cores),
        "ports": [
            {"name": "grpc", "containerPort": _GRPC},
            {"name": "rest", "containerPort": _REST},
        ],
        "resources": {
            "requests": {"memory": f"{memory}Mi"},
            "limits": {"cpu": str(cores), "memory": f"{memory}Mi"},
        },
        # The port opens once all units are loaded.
        "readinessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "securityContext": _SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/serving", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "units", "mountPath": "/models", "readOnly": True},
        ],
    }
    claim = {"claimName": CLAIM, "readOnly": True}
    units = {"name": "units", "persistentVolumeClaim": claim}
    return _deployment(name, site, container, [units])


def _gateway_command() -> list[str]:
    return [
        "python", "-m", "branchy_tf.cascade", "serve",
        "--config=/etc/cascade/cascade.yaml", "--host=0.0.0.0", f"--port={_GRPC}",
        "--metrics_port=9000",
    ]  # fmt: skip


def _gateway_deployment(name: str, site: str, image: str) -> dict[str, Any]:
    container = {
        "name": "gateway",
        "image": image,
        "command": _gateway_command(),
        "ports": [
            {"name": "grpc", "containerPort": _GRPC},
            {"name": "metrics", "containerPort": 9000},
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "512Mi"},
            "limits": {"memory": "512Mi"},
        },
        # Healthy once it has reached every unit.
        "readinessProbe": {"grpc": {"port": _GRPC}, "periodSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "securityContext": _SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/cascade", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return _deployment(name, site, container, [])


def _composed(
    name: str, image: str, target: str, memory: int, volumes: list[dict[str, Any]]
) -> dict[str, Any]:
    config = {
        "type": "bind",
        "source": f"./{name}",
        "target": target,
        "read_only": True,
        "bind": {"create_host_path": False},
    }
    return {
        "image": image,
        "volumes": [config, *volumes],
        "init": True,
        "restart": "unless-stopped",
        "mem_limit": f"{memory}m",
        "user": f"{_USER}:{_USER}",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _composed_serving(name: str, cores: int, memory: int, image: str) -> dict[str, Any]:
    units = {
        "type": "bind",
        "source": "${UNITS_DIR:-./units}",
        "target": "/models",
        "read_only": True,
        "bind": {"create_host_path": False},
    }
    return _composed(name, image, "/etc/serving", memory, [units]) | {
        "entrypoint": ["tensorflow_model_server"],
        "command": _serving_flags(cores),
        "cpus": cores,
    }


def _composed_gateway(
    name: str, port: int, servers: list[str], image: str
) -> dict[str, Any]:
    return _composed(name, image, "/etc/cascade", 512, []) | {
        "entrypoint": _gateway_command(),
        # Only for this machine: the gateway has no authentication.
        "ports": [f"127.0.0.1:{port}:{_GRPC}"],
        "depends_on": servers,
    }

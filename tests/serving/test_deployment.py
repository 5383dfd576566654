from __future__ import annotations

import fnmatch
import inspect
import json
import re

import deployment
import pytest
import small
from deployment import CONFIG_FOLDER, KNOWN_FLAGS, SERVING

from branchy_tf import saved_model
from branchy_tf.saved_model import warmup
from branchy_tf.serving import EarlyExitClient, configs

WHERE = sorted(deployment.command_lines())
# Whose ports and paths are ours; KServe's runtime has its own.
OURS = ["docker-compose.yml", "kubernetes/deployment.yaml"]


@pytest.fixture(scope="module")
def readme():
    return (SERVING / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An --export_dir with two versions of the model that models.config names."""
    folder = tmp_path_factory.mktemp("build") / deployment.build_arguments()["EXPORT_DIR"]
    for _ in range(2):
        saved_model.export(small.model(), folder, deployment.model().name, [0.1])
    return folder


# What is started


@pytest.mark.parametrize("where", WHERE)
def test_flags_are_tensorflow_model_servers(where):
    for flag in deployment.command_lines()[where]:
        assert re.fullmatch(r"--\w+=\S+", flag), flag
    assert set(deployment.flags(where)) - KNOWN_FLAGS == set()


@pytest.mark.parametrize("where", WHERE)
def test_files_that_flags_name_are_there(where):
    named = {v for k, v in deployment.flags(where).items() if k.endswith("_file")}
    assert named
    for path in named:
        assert path.startswith(f"{CONFIG_FOLDER}/")
        assert (SERVING / path.removeprefix(f"{CONFIG_FOLDER}/")).is_file()


def test_every_place_starts_the_server_alike():
    compose, pods, kserve, baked = (
        deployment.flags(where)
        for where in (*OURS, "kserve/inference_service.yaml", "Dockerfile")
    )
    assert pods.pop("grpc_channel_arguments")
    assert pods == compose
    # What KServe's runtime and the image's entrypoint pass themselves.
    for flag in ("port", "rest_api_port"):
        del compose[flag]
    # One model, whose newest version counts, instead of a list.
    for flag in [name for name in compose if "model_config" in name]:
        del compose[flag]
    del compose["allow_version_labels_for_unavailable_models"]
    assert baked == compose
    assert kserve.pop("model_name") == deployment.model().name
    assert kserve == compose


def test_the_command_is_the_server_itself():
    assert deployment.compose()["services"]["serving"]["entrypoint"] == [
        "tensorflow_model_server"
    ]
    assert deployment.container()["command"] == ["tensorflow_model_server"]
    # The image's own entrypoint is kept: CMD is what it passes on.
    assert "ENTRYPOINT" not in deployment.dockerfile()


def test_the_image_is_pinned_once():
    services = deployment.compose()["services"]
    (base,) = deployment.dockerfile()["FROM"]
    model = deployment.inference_service()["spec"]["predictor"]["model"]
    images = {
        services["serving"]["image"],
        deployment.container()["image"],
        base,
        f"tensorflow/serving:{model['runtimeVersion']}",
    }
    assert len(images) == 1
    for image in [*images, *(service["image"] for service in services.values())]:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", image), image


def test_the_image_is_no_older_than_what_exports():
    project = (SERVING.parent / "pyproject.toml").read_text(encoding="utf-8")
    release = deployment.container()["image"].rpartition(":")[2]
    for package in ("tensorflow", "tensorflow-serving-api"):
        (needed,) = re.findall(rf'"{package}>=([\d.]+)"', project)
        assert numbers(release) >= numbers(needed)


def numbers(release):
    return tuple(int(part) for part in release.split("."))


# The configs


def test_models_config_finds_what_export_writes(exports):
    model = deployment.model()
    assert model.model_platform == "tensorflow"
    assert model.base_path == f"/models/{model.name}"
    versions = list(model.model_version_policy.specific.versions)
    assert versions == sorted(
        int(folder.name) for folder in (exports / model.name).iterdir()
    )
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    assert set(model.version_labels.values()) <= set(versions)


def test_serve_reads_models_config_too():
    ours = configs.read(SERVING / "models.config", "ModelServerConfig")
    (model,) = ours.model_config_list.config
    assert model.SerializeToString(deterministic=True) == (
        deployment.model().SerializeToString(deterministic=True)
    )


def test_the_models_folder_is_mounted_where_models_config_looks():
    folder = deployment.model().base_path.rpartition("/")[0]
    mounts = {
        mount["target"]: mount
        for mount in deployment.compose()["services"]["serving"]["volumes"]
    }
    assert mounts[folder]["read_only"]
    assert mounts[CONFIG_FOLDER]["read_only"]
    assert mounts[CONFIG_FOLDER]["source"] == "."
    # The default: beside serving/, like the build's.
    default = re.fullmatch(r"\$\{MODELS_DIR:-\.\./(\w+)\}", mounts[folder]["source"])
    assert default[1] == deployment.build_arguments()["EXPORT_DIR"]
    mounts = {
        mount["mountPath"]: mount for mount in deployment.container()["volumeMounts"]
    }
    assert mounts[folder]["readOnly"]
    assert mounts[CONFIG_FOLDER]["readOnly"]


def test_batching_config_suits_the_export_and_the_container():
    batching = configs.read(SERVING / "batching.config", "BatchingParameters")
    assert batching.max_batch_size.value == max(warmup.BATCH_SIZES)
    assert batching.batch_timeout_micros.value == 0
    assert batching.max_enqueued_batches.value > 0
    assert batching.thread_pool_name.value
    # These two can abort the server.
    assert not batching.allowed_batch_sizes
    assert not batching.pad_variable_length_inputs
    model = deployment.inference_service()["spec"]["predictor"]["model"]
    cpus = {
        float(deployment.compose()["services"]["serving"]["cpus"]),
        float(deployment.container()["resources"]["limits"]["cpu"]),
        float(model["resources"]["limits"]["cpu"]),
    }
    for where in WHERE:
        flags = deployment.flags(where)
        # A batch is computed by the threads of one operation, in the batch's own thread.
        assert int(flags["tensorflow_inter_op_parallelism"]) == -1
        each = int(flags["tensorflow_intra_op_parallelism"])
        assert {each * batching.num_batch_threads.value} == cpus
        # One batch waits while another fills, with one row a request.
        assert int(flags["grpc_max_threads"]) == 2 * batching.max_batch_size.value


def test_monitoring_config_is_where_prometheus_and_the_probes_ask():
    prometheus = configs.read(
        SERVING / "monitoring.config", "MonitoringConfig"
    ).prometheus_config
    assert prometheus.enable
    (jobs,) = deployment.load("monitoring/prometheus.yml")
    job = next(j for j in jobs["scrape_configs"] if j["job_name"] == "tf-serving")
    assert job["metrics_path"] == prometheus.path
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert service in deployment.compose()["services"]
    assert port == deployment.flags("docker-compose.yml")["rest_api_port"]
    for probe in ("startupProbe", "livenessProbe"):
        found = deployment.container()[probe]["httpGet"]
        assert found == {"path": prometheus.path, "port": "rest"}


def test_ssl_config_shows_the_form():
    ssl = configs.read(SERVING / "ssl.config", "SSLConfig")
    assert ssl.client_verify
    assert ssl.server_key.startswith("-----BEGIN PRIVATE KEY-----\n")
    for certificate in (ssl.server_cert, ssl.custom_ca):
        assert certificate.startswith("-----BEGIN CERTIFICATE-----\n")
        assert certificate.endswith("-----END CERTIFICATE-----\n")


# The image that has a version baked in


def test_the_build_finds_what_export_writes(exports):
    values = deployment.build_arguments()
    context = exports.parent
    (context / "serving").symlink_to(SERVING)
    copied = {}
    for line in deployment.dockerfile()["COPY"]:
        *sources, target = deployment.resolve(line, values).split()
        for source in sources:
            assert (context / source).exists(), source
            copied[source] = target
    version = f"{values['EXPORT_DIR']}/{values['MODEL_NAME']}/{values['MODEL_VERSION']}"
    assert (context / version / "saved_model.pb").is_file()
    assert copied.pop(version) == f"/models/{version.partition('/')[2]}"
    # The rest: what its flags and its health check name.
    (check,) = deployment.dockerfile()["HEALTHCHECK"]
    named = re.findall(rf"{CONFIG_FOLDER}/([\w.]+)", check)
    named += [
        value.rpartition("/")[2]
        for name, value in deployment.flags("Dockerfile").items()
        if name.endswith("_file")
    ]
    assert {source.removeprefix("serving/") for source in copied} == set(named)
    assert set(copied.values()) == {f"{CONFIG_FOLDER}/"}


def test_the_build_keeps_keys_and_clutter_out(exports):
    ignored = (SERVING / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line.removeprefix("**/") for line in ignored if not line.startswith("#")]
    assert any(fnmatch.fnmatch("server.key", pattern) for pattern in patterns)
    for path in exports.rglob("*"):
        assert not any(fnmatch.fnmatch(path.name, p) for p in patterns), path


# Kubernetes


def test_kustomize_takes_every_manifest_and_config():
    (custom,) = deployment.load("kustomization.yaml")
    assert sorted(custom["resources"]) == [
        name for name in deployment.files() if name.startswith("kubernetes/")
    ]
    (generated,) = custom["configMapGenerator"]
    named = {
        value.rpartition("/")[2]
        for where in (*OURS, "kserve/inference_service.yaml")
        for name, value in deployment.flags(where).items()
        if name.endswith("_file")
    }
    assert set(generated["files"]) == named | {"ready.sh"}
    # The running servers look at one name.
    assert generated["options"]["disableNameSuffixHash"]


def test_volumes_are_those_there_are():
    (custom,) = deployment.load("kustomization.yaml")
    (generated,) = custom["configMapGenerator"]
    pod = deployment.deployment()["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"] for mount in deployment.container()["volumeMounts"]}
    assert set(volumes) == mounted
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in deployment.kubernetes()
    predictor = deployment.inference_service()["spec"]["predictor"]
    (volume,) = predictor["volumes"]
    (mount,) = predictor["model"]["volumeMounts"]
    assert volume["configMap"]["name"] == generated["name"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == CONFIG_FOLDER
    name = deployment.model().name
    assert predictor["model"]["storageUri"] == f"pvc://{claim}/{name}"


def test_everything_selects_the_servers_pods():
    objects = deployment.kubernetes()
    labels = deployment.deployment()["spec"]["template"]["metadata"]["labels"]
    pod = deployment.deployment()["spec"]["template"]["spec"]
    (spread,) = pod["topologySpreadConstraints"]
    selectors = [spread["labelSelector"]["matchLabels"]]
    for (kind, _), found in objects.items():
        assert found["metadata"]["labels"] == labels
        spec = found["spec"]
        if kind == "Service":
            selectors.append(spec["selector"])
        elif kind in ("Deployment", "PodDisruptionBudget"):
            selectors.append(spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    assert len(selectors) == 6
    assert all(selector == labels for selector in selectors)
    autoscaler = objects["HorizontalPodAutoscaler", "branchy-serving"]["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment.deployment()["apiVersion"],
        "kind": "Deployment",
        "name": deployment.deployment()["metadata"]["name"],
    }
    # It alone says how many: two, so that the budget can let one go.
    assert "replicas" not in deployment.deployment()["spec"]
    budget = objects["PodDisruptionBudget", "branchy-serving"]["spec"]
    assert autoscaler["minReplicas"] > budget["maxUnavailable"]


def test_ports_are_the_same_all_the_way():
    flags = deployment.flags("kubernetes/deployment.yaml")
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    ports = {"grpc": int(flags["port"]), "rest": int(flags["rest_api_port"])}
    found = {p["name"]: p["containerPort"] for p in deployment.container()["ports"]}
    assert found == ports
    objects = deployment.kubernetes()
    for name, port in {"": "grpc", "-metrics": "rest"}.items():
        (served,) = objects["Service", f"branchy-serving{name}"]["spec"]["ports"]
        assert served["name"] == served["targetPort"] == port
        assert served["port"] == ports[port]
    policy = objects["NetworkPolicy", "branchy-serving"]["spec"]
    allowed = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert allowed == list(ports.values())
    # To nobody but this machine; REST to nobody at all.
    published = deployment.compose()["services"]["serving"]["ports"]
    assert published == [f"127.0.0.1:{ports['grpc']}:{ports['grpc']}"]


def test_nobody_connects_who_is_not_named():
    policy = deployment.kubernetes()["NetworkPolicy", "branchy-serving"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    for rule in policy["ingress"]:
        for peer in rule["from"]:
            (selector,) = peer.values()
            assert selector["matchLabels"]
    for name, service in deployment.compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_servers_run_without_rights():
    pod = deployment.deployment()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    context = deployment.container()["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    limits = deployment.container()["resources"]
    assert set(limits["limits"]) == set(limits["requests"]) == {"cpu", "memory"}
    service = deployment.compose()["services"]["serving"]
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert [service["user"]] == deployment.dockerfile()["USER"] == [user]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_a_rollout_loses_no_answer():
    spec = deployment.deployment()["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    command, seconds = deployment.container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    timeout = inspect.signature(EarlyExitClient).parameters["timeout"].default
    grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= int(seconds) + timeout


# The README


def test_the_readme_names_every_file(readme):
    # The first column of its table of files.
    named = re.findall(r"^\| `([\w./-]+\.\w+|Dockerfile)`", readme, flags=re.MULTILINE)
    assert set(named) == set(deployment.files()) - {"README.md"}


def test_the_readme_explains_every_flag(readme):
    explained = set(re.findall(r"^\| `--(\w+)", readme, flags=re.MULTILINE))
    used = {flag for where in WHERE for flag in deployment.flags(where)}
    assert used - explained == set()
    # The rest are of branchy_tf's own commands.
    others = set(re.findall(r"--(\w+_\w+)\b", readme)) - KNOWN_FLAGS
    assert others == {"run_dir", "export_dir"}


def test_the_readme_tells_what_the_export_holds(readme, exports):
    version = exports / deployment.model().name / "1"
    for name in ("branchy.json", warmup.FILE_NAME):
        assert f"assets.extra/{name}" in readme
        assert (version / "assets.extra" / name).is_file()
    signatures = saved_model.EarlyExitModule(small.model(), [0.1]).functions
    for name in signatures:
        assert f"`{name}`" in readme
    # How to find the image for an export.
    described = json.loads((version / "assets.extra/branchy.json").read_text())
    assert "tensorflow" in described["versions"]
    assert "versions.tensorflow" in readme


def test_the_readme_says_what_was_not_run(readme):
    assert "not been run" in readme

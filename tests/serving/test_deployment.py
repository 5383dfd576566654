from __future__ import annotations

import ast
import fnmatch
import inspect
import json
import os
import re
import subprocess
import textwrap

import deployment
import pytest
import small
from deployment import CONFIG_FOLDER, KNOWN_FLAGS, SERVING

from branchy_tf import saved_model
from branchy_tf.saved_model import warmup
from branchy_tf.serving import EarlyExitClient, Tls, configs

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
def test_files_named_in_flags_exist(where):
    named = {v for k, v in deployment.flags(where).items() if k.endswith("_file")}
    assert named
    for path in named:
        assert path.startswith(f"{CONFIG_FOLDER}/")
        assert (SERVING / path.removeprefix(f"{CONFIG_FOLDER}/")).is_file()


def test_every_deployment_starts_the_server_alike():
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


def test_mounted_volumes_exist():
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


def test_only_named_clients_may_connect():
    policy = deployment.kubernetes()["NetworkPolicy", "branchy-serving"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    for rule in policy["ingress"]:
        for peer in rule["from"]:
            (selector,) = peer.values()
            assert selector["matchLabels"]
    services = deployment.compose()["services"]
    # It asks who they are, and is started only by those who want it.
    front = services.pop("front")
    assert front["ports"] == ["8443:8443"]
    assert front["profiles"] == ["front"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_servers_run_unprivileged():
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


# The front


@pytest.fixture(scope="module")
def front():
    """`{kind: object}` of front/kubernetes.yaml."""
    found = deployment.load("front/kubernetes.yaml")
    objects = {each["kind"]: each for each in found}
    assert len(objects) == len(found)
    return objects


def front_settings(name):
    """The values of a directive in front/nginx.conf."""
    text = (SERVING / "front/nginx.conf").read_text(encoding="utf-8")
    return re.findall(rf"^ *{name} ([^;{{]+);$", text, flags=re.MULTILINE)


def test_the_front_is_started_alike_everywhere(front):
    service = deployment.compose()["services"]["front"]
    (container,) = front["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert service["image"] == container["image"]
    assert service["entrypoint"] == container["command"] == ["nginx"]
    assert service["command"] == container["args"]
    (volume,) = service["volumes"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volume["target"] == mounts["front"]
    assert service["command"][1] == f"{mounts['front']}/nginx.conf"
    assert (SERVING / volume["source"] / "nginx.conf").is_file()
    (custom,) = deployment.load("front/kustomization.yaml")
    assert custom["resources"] == ["kubernetes.yaml"]
    (generated,) = custom["configMapGenerator"]
    assert generated["files"] == ["nginx.conf"]


def test_the_front_finds_its_certificates(front):
    pod = front["Deployment"]["spec"]["template"]["spec"]
    (volume,) = (found for found in pod["volumes"] if found["name"] == "front")
    config, certificates, tokens = volume["projected"]["sources"]
    (custom,) = deployment.load("front/kustomization.yaml")
    assert config["configMap"]["name"] == custom["configMapGenerator"][0]["name"]
    paths = {item["path"] for item in certificates["secret"]["items"]}
    assert paths == {
        path
        for name in ("ssl_certificate", "ssl_certificate_key", "ssl_client_certificate")
        for path in front_settings(name)
    }
    (included,) = front_settings("include")
    (item,) = tokens["secret"]["items"]
    assert fnmatch.fnmatch(item["path"], included)
    assert tokens["secret"]["optional"]


def test_the_front_reaches_the_servers_and_nothing_else(front):
    (server,) = front_settings("server")
    name, port = server.split(":")
    objects = deployment.kubernetes()
    (served,) = objects["Service", name]["spec"]["ports"]
    assert served["port"] == int(port)
    aliases = deployment.compose()["services"]["serving"]["networks"]["default"]
    assert aliases == {"aliases": [name]}
    # What the servers' policy lets in, and what the front's lets out.
    pod = front["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (peer,) = objects["NetworkPolicy", "branchy-serving"]["spec"]["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"].items() <= pod.items()
    to_servers, names = front["NetworkPolicy"]["spec"]["egress"]
    (peer,) = to_servers["to"]
    labels = deployment.deployment()["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"] == labels
    assert to_servers["ports"] == [{"protocol": "TCP", "port": int(port)}]
    assert {found["port"] for found in names["ports"]} == {53}


def test_the_front_listens_on_one_port(front):
    (listen,) = front_settings("listen")
    port = int(listen.split()[0])
    assert deployment.compose()["services"]["front"]["ports"] == [f"{port}:{port}"]
    (container,) = front["Deployment"]["spec"]["template"]["spec"]["containers"]
    (opened,) = container["ports"]
    assert opened["containerPort"] == port
    (served,) = front["Service"]["spec"]["ports"]
    assert served["targetPort"] == opened["name"]
    (rule,) = front["NetworkPolicy"]["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": port}]}
    selectors = [
        front["Deployment"]["spec"]["selector"]["matchLabels"],
        front["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        front["Service"]["spec"]["selector"],
    ]
    labels = front["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert all(selectors)


def test_the_front_runs_unprivileged(front):
    pod = front["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    servers_pod = deployment.deployment()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    for name, value in servers_pod["securityContext"].items():
        assert pod["securityContext"][name] == value
    assert container["securityContext"] == deployment.container()["securityContext"]
    services = deployment.compose()["services"]
    for name in ("user", "read_only", "tmpfs", "cap_drop", "security_opt", "restart"):
        assert services["front"][name] == services["serving"][name]


def test_the_front_finishes_pending_requests(front):
    pod = front["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    (longest,) = front_settings("grpc_read_timeout")
    needed = int(seconds) + int(longest.removesuffix("s"))
    assert pod["terminationGracePeriodSeconds"] >= needed


# The README


def test_the_readme_names_every_file(readme):
    assert set(table(readme, "file")) == set(deployment.files()) - {"README.md"}


def test_the_readme_explains_every_flag(readme):
    explained = set(re.findall(r"^\| `--(\w+)", readme, flags=re.MULTILINE))
    used = {flag for where in WHERE for flag in deployment.flags(where)}
    assert used - explained == set()
    # The rest are of branchy_tf's own commands.
    others = set(re.findall(r"--(\w+_\w+)\b", readme)) - KNOWN_FLAGS
    assert others == {"run_dir", "export_dir", "max_rows", "max_message_bytes"}


def table(readme, head):
    """`{first column: the rest}` of a table, without backticks, by its first head."""
    (body,) = re.findall(
        rf"^\| {head} \|.*\n\| --- .*\n((?:\|.*\n)+)", readme, flags=re.MULTILINE
    )
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in body.splitlines()]
    return {first.replace("`", ""): rest for first, *rest in rows}


def test_the_readme_lists_the_exports_signatures(readme):
    signatures = saved_model.EarlyExitModule(small.model(), [0.1]).functions
    assert set(table(readme, "signature")) == set(signatures)


def test_export_files_named_in_the_readme_exist(readme, exports):
    version = exports / deployment.model().name / "1"
    named = set(re.findall(r"`(assets\.extra/[\w.]+)`", readme))
    assert len(named) == 2
    for path in named:
        assert (version / path).is_file()
    # How to find the image for an export.
    described = json.loads((version / "assets.extra/branchy.json").read_text())
    (field,) = set(re.findall(r"`versions\.(\w+)`", readme))
    assert described["versions"][field].startswith("2.")


def test_python_in_the_readme_is_valid(readme):
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", readme, flags=re.M | re.S)
    assert len(blocks) >= 4
    for block in blocks:
        tree = ast.parse(textwrap.dedent(block))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).removeprefix("client.")
            target = {
                "EarlyExitClient": EarlyExitClient,
                "Tls": Tls,
                "predict": EarlyExitClient.predict,
            }.get(name)
            assert target or name == "float", name
            known = set(inspect.signature(target or float).parameters)
            assert {keyword.arg for keyword in call.keywords} <= known, block


def test_shell_in_the_readme_is_valid(readme):
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", readme, flags=re.M | re.S)
    assert len(blocks) >= 6
    for block in blocks:
        text = textwrap.dedent(block)
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        for path in re.findall(r"(?:-k|-f) (\S+)", text):
            inside = path.removeprefix("serving/")
            assert (SERVING / inside).exists(), path
        for script in re.findall(r"^\./(\S+)", text, flags=re.M):
            assert os.access(SERVING / script, os.X_OK), script

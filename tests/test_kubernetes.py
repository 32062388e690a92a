"""deploy/kubernetes, rendered and read: valid for several versions, and true to the rest of the repository."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.app import create_app
from gateway.catalog import JITTER, PROBE_SECONDS
from gateway.settings import Settings as GatewaySettings
from services.registry import WORKERS
from services.settings import Settings as WorkerSettings
from tests import settings_page
from ui.settings import Settings as StudioSettings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
MANIFESTS = "".join(file.read_text(encoding="utf-8") for file in sorted(FOLDER.rglob("*.yaml")))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
VERSIONS = ("1.30", "1.33", "1.36")
WORKER_NAMES = set(WORKERS)
NAMESPACE = "kubernetes.io/metadata.name"  # a label that each namespace has
READ_BY: Mapping[str, Any] = {
    "gateway": GatewaySettings,
    "studio": StudioSettings,
    **dict.fromkeys(WORKERS, WorkerSettings),
}

Manifest = dict[str, Any]
Labels = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """Who opens a connection, or is asked: a pod, or what is no pod of this cluster.

    Args:
        namespace: its own, or nothing.
        labels: its own.
    """

    namespace: str
    labels: Labels


OUTSIDE = Peer("", {})


class Cluster:
    """What an overlay comes to."""

    def __init__(self, folder: Path) -> None:
        self.manifests: list[Manifest] = list(yaml.safe_load_all(render(folder)))

    def all(self, kind: str) -> dict[str, Manifest]:
        return {each["metadata"]["name"]: each for each in self.manifests if each["kind"] == kind}

    @property
    def pods(self) -> dict[str, Manifest]:
        """The templates, by deployment."""
        return {name: deployment["spec"]["template"] for name, deployment in self.all("Deployment").items()}

    def container(self, name: str) -> Manifest:
        (found,) = self.pods[name]["spec"]["containers"]
        assert isinstance(found, dict)
        return found

    def environment(self, name: str) -> dict[str, str]:
        container, maps = self.container(name), self.all("ConfigMap")
        named = [each["configMapRef"]["name"] for each in container.get("envFrom", []) if "configMapRef" in each]
        taken = [maps[name]["data"] for name in named]
        own = {each["name"]: each.get("value", "") for each in container["env"]}
        return {name: value for given in [*taken, own] for name, value in given.items()}

    def selected(self, selector: Labels) -> set[str]:
        """The deployments whose pods have these labels."""
        return {name for name, pod in self.pods.items() if selector.items() <= pod["metadata"]["labels"].items()}

    def peer(self, name: str) -> Peer:
        return Peer("atelier", self.pods[name]["metadata"]["labels"])

    @property
    def policies(self) -> list[Manifest]:
        return [each["spec"] for each in self.all("NetworkPolicy").values()]

    @property
    def guests(self) -> list[Peer]:
        """The pods of other namespaces that policies let in."""
        rules = [rule for policy in self.policies for rule in policy.get("ingress", [])]
        return [
            Peer(labels_of(each["namespaceSelector"]).get(NAMESPACE, "any"), labels_of(each.get("podSelector", {})))
            for rule in rules
            for each in rule.get("from", [])
            if "namespaceSelector" in each
        ]

    def may_connect(self, source: Peer, target: Peer, port: int) -> bool:
        """Whether network policies let `source` open a connection to `target`."""
        return self._lets("Egress", source, target, port) and self._lets("Ingress", target, source, port)

    def _lets(self, direction: str, pod: Peer, peer: Peer, port: int) -> bool:
        if pod.namespace != "atelier":
            return True
        policies = [
            each
            for each in self.policies
            if direction in each["policyTypes"] and labels_of(each["podSelector"]).items() <= pod.labels.items()
        ]
        rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
        return not policies or any(self._fits(rule, peer, port) for rule in rules)

    def _fits(self, rule: Manifest, peer: Peer, port: int) -> bool:
        if port not in {each["port"] for each in rule["ports"]}:
            return False
        peers = rule.get("from") or rule.get("to")
        return peers is None or any(names(each, peer) for each in peers)


def names(selectors: Manifest, peer: Peer) -> bool:
    """Whether one of a rule's peers is this one."""
    if "ipBlock" in selectors:
        return peer == OUTSIDE and selectors["ipBlock"]["cidr"] == "0.0.0.0/0"
    namespace = labels_of(selectors.get("namespaceSelector", {"matchLabels": {NAMESPACE: "atelier"}}))
    pods = labels_of(selectors.get("podSelector", {}))
    return namespace.items() <= {NAMESPACE: peer.namespace}.items() and pods.items() <= peer.labels.items()


def labels_of(selector: Manifest) -> Labels:
    assert set(selector) <= {"matchLabels"}
    found: Labels = selector.get("matchLabels", {})
    return found


def render(folder: Path) -> str:
    program = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(program[0]) is None:
        pytest.fail("there is neither kustomize nor kubectl to render with: .ci/kustomize installs one")
    done = subprocess.run([*program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_the_document(folder: Path) -> Path:
    """The overlay that the document shows, in a folder beside a clone."""
    shown = re.search(r"```yaml\n(apiVersion: kustomize.*?)```", DOCUMENT, re.DOTALL)
    assert shown
    shutil.copytree(FOLDER, folder / "atelier" / "deploy" / "kubernetes")
    (folder / "ours").mkdir()
    (folder / "ours" / "kustomization.yaml").write_text(shown[1], encoding="utf-8")
    return folder / "ours"


@pytest.fixture(scope="module")
def cpu() -> Cluster:
    return Cluster(FOLDER / "overlays" / "cpu")


@pytest.fixture(scope="module")
def gpu() -> Cluster:
    return Cluster(FOLDER / "overlays" / "gpu")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(of_the_document(tmp_path_factory.mktemp("clone")))


@pytest.fixture(params=["cpu", "gpu", "ours"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_kubernetes_takes_it(cpu: Cluster, gpu: Cluster, ours: Cluster, version: str) -> None:
    manifests = [*cpu.manifests, *gpu.manifests, *ours.manifests]
    for manifest in [each for number, each in enumerate(manifests) if each not in manifests[:number]]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_mistake_would_be_found(cpu: Cluster) -> None:
    """The validator's own check: an unknown field, and a wrong type."""
    deployment = cpu.all("Deployment")["gateway"]
    for change in ({"replica": 2}, {"replicas": "two"}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(
                {**deployment, "spec": {**deployment["spec"], **change}}, VERSIONS[0], strict=True
            )


# --- who may ask whom ---


def test_only_the_gateway_reaches_workers_and_what_is_outside(cluster: Cluster) -> None:
    ports = {name: cluster.container(name)["ports"][0]["containerPort"] for name in cluster.pods}
    peers = {name: cluster.peer(name) for name in cluster.pods}
    assert {
        (source, target)
        for source, target in product(peers, peers)
        if any(cluster.may_connect(peers[source], peers[target], port) for port in ports.values())
    } == {
        ("studio", "gateway"),
        *(("gateway", task) for task in WORKERS),
        *((task, "gateway") for task in WORKERS),  # receipts
    }
    entered = {name for name, peer in peers.items() if cluster.may_connect(OUTSIDE, peer, ports[name])}
    assert entered == {"gateway", "studio"}

    def reach(port: int) -> set[str]:
        return {name for name, peer in peers.items() if cluster.may_connect(peer, OUTSIDE, port)}

    assert reach(5432) == reach(6379) == {"gateway"}
    assert reach(443) == {"gateway", *WORKERS}
    assert reach(80) == set()


def test_prometheus_reaches_the_workers_that_say_so_and_nobody_else_from_elsewhere(
    cpu: Cluster, gpu: Cluster, ours: Cluster
) -> None:
    prometheus = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
    for cluster, guests, scraped in (
        (cpu, [], set()),
        (gpu, [prometheus], WORKER_NAMES),
        (ours, [prometheus], WORKER_NAMES),
    ):
        notes = {name: pod["metadata"].get("annotations", {}) for name, pod in cluster.pods.items()}
        assert cluster.guests == guests
        assert {task for task in WORKERS if cluster.may_connect(prometheus, cluster.peer(task), 3000)} == scraped
        assert {name for name, each in notes.items() if each.get("prometheus.io/scrape") == "true"} == scraped
    assert "\n| Prometheus, with `monitoring` or `gpu` | workers" in DOCUMENT


def test_a_pod_that_no_policy_names_is_cut_off(cluster: Cluster) -> None:
    policy = cluster.all("NetworkPolicy")["nothing"]["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_workers_are_reached_pod_by_pod_and_the_gateway_by_its_service(cluster: Cluster) -> None:
    services, environment = cluster.all("Service"), cluster.environment("gateway")
    for task in WORKERS:
        service = services[task]["spec"]
        assert environment[f"ATELIER_{task.upper()}_URL"] == f"dns+http://{task}:{service['ports'][0]['port']}"
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True
        assert cluster.environment(task)["ATELIER_RECEIPTS_URL"].startswith("http://gateway:8000/")
    assert cluster.environment("studio")["ATELIER_URL"] == "http://gateway:8000"
    assert services["gateway"]["spec"]["ports"][0]["port"] == 8000


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_what_selects_pods_selects_those_of_its_name(cluster: Cluster, kind: str) -> None:
    for name, manifest in cluster.all(kind).items():
        selector = manifest["spec"]["selector"]
        assert cluster.selected(selector.get("matchLabels", selector)) == {name}


# --- what each may do ---


@pytest.mark.parametrize("name", READ_BY)
def test_a_pod_may_do_no_more_than_it_must(cluster: Cluster, name: str) -> None:
    pod, container = cluster.pods[name]["spec"], cluster.container(name)

    assert "initContainers" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n" in DOCKERFILE
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert cluster.all("ServiceAccount")[pod["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert {*pod} & {"hostNetwork", "hostPID", "hostIPC"} == set()
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert container["resources"]["limits"]["memory"]
    assert {*container["resources"]["requests"]} == {"cpu", "memory"}


def test_the_namespace_refuses_others(cluster: Cluster) -> None:
    namespace = cluster.all("Namespace")["atelier"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    namespaced = [each for each in cluster.manifests if each is not namespace]
    assert {each["metadata"]["namespace"] for each in namespaced} == {"atelier"}


def test_secrets_come_as_files_and_are_those_that_the_document_makes(cluster: Cluster) -> None:
    made = {
        secret: set(re.findall(r"--from-file=(\w+)", words))
        for secret, words in re.findall(r"create secret generic (\S+)((?:.*\\\n)*.*)", DOCUMENT)
    }
    for name, pod in cluster.pods.items():
        read = set(READ_BY[name].model_fields) | {"admin_key"}
        if cluster.environment(name).get("HF_TOKEN_PATH") == "/secrets/hf_token":
            read.add("hf_token")
        mounted = set(secrets(pod["spec"]["volumes"]))
        assert mounted == set() if name == "studio" else len(mounted) == 1
        assert {file.removeprefix("atelier_") for secret in mounted for file in made[secret]} <= read
        assert not any("secretKeyRef" in each.get("valueFrom", {}) for each in cluster.container(name)["env"])
    for task in WORKERS:
        (volume,) = (each for each in cluster.pods[task]["spec"]["volumes"] if each["name"] == "secrets")
        sources = [each["secret"] for each in volume["projected"]["sources"]]
        keys = {each["items"][0]["key"]: each.get("optional", False) for each in sources}
        assert keys == {"atelier_internal_token": False, "hf_token": True}
    assert made["atelier-gateway"] >= {"admin_key", "atelier_database_url", "atelier_redis_url", "atelier_signing_key"}
    assert "atelier_internal_token" in made["atelier-gateway"] & made["atelier-worker"]
    assert not any(each["kind"] == "Secret" for each in cluster.manifests)


def secrets(volumes: list[Manifest]) -> Iterator[str]:
    for volume in volumes:
        if "secret" in volume:
            yield volume["secret"]["secretName"]
        for source in volume.get("projected", {}).get("sources", []):
            yield source["secret"]["name"]


def test_only_settings_that_exist_are_named() -> None:
    assert set(re.findall(r"ATELIER_[A-Z0-9_]+", MANIFESTS + DOCUMENT)) <= settings_page.documented()


@pytest.mark.parametrize("name", READ_BY)
def test_a_pod_is_given_settings_that_it_reads(cpu: Cluster, name: str) -> None:
    read = {f"ATELIER_{field.upper()}" for field in READ_BY[name].model_fields} | {"ATELIER_SECRETS_DIR"}
    own = {each["name"] for each in cpu.container(name)["env"] if each["name"].startswith("ATELIER_")}
    shared = {name for each in cpu.all("ConfigMap").values() for name in each["data"]}
    assert own <= read
    assert shared <= {f"ATELIER_{field.upper()}" for field in WorkerSettings.model_fields}


# --- what runs ---


def test_images_are_those_that_the_dockerfile_makes(cpu: Cluster) -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(?:(?!FROM).*\n)*?EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE))
    found = {cpu.container(name)["image"]: str(cpu.container(name)["ports"][0]["containerPort"]) for name in cpu.pods}
    assert found == {f"atelier-{stage}": port for stage, port in stages.items()}


def test_each_worker_runs_its_service(cpu: Cluster) -> None:
    assert {task: cpu.container(task)["args"] for task in WORKERS} == {
        task: [worker.target] for task, worker in WORKERS.items()
    }


@pytest.fixture(scope="module")
def paths() -> set[str]:
    """Which the gateway answers."""
    return set(create_app(GatewaySettings()).openapi()["paths"])


def test_probes_ask_what_is_answered(cluster: Cluster, paths: set[str]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name in cluster.pods:
        container = cluster.container(name)
        probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
        answered = paths if name == "gateway" else {"/livez", "/readyz"}  # which gateways ask of workers
        if name == "studio":
            answered = {compose["ui"]["healthcheck"]["test"][-1]}
        assert {probe["path"] for probe in probes} <= answered
        assert {probe["port"] for probe in probes} == {container["ports"][0]["name"]}
    workers = [cluster.container(task) for task in WORKERS]
    assert {worker["readinessProbe"]["httpGet"]["path"] for worker in workers} == {"/readyz"}
    assert {worker["livenessProbe"]["httpGet"]["path"] for worker in workers} == {"/livez"}


def test_one_modality_that_is_away_takes_no_gateway_away(cluster: Cluster) -> None:
    """`/readyz` is 503 then."""
    assert cluster.container("gateway")["readinessProbe"]["httpGet"]["path"] == "/livez"


def test_whoever_stops_has_time_for_what_is_under_way(cluster: Cluster) -> None:
    grace = {name: pod["spec"].get("terminationGracePeriodSeconds") for name, pod in cluster.pods.items()}
    settings = cluster.environment("gateway")
    assert float(settings["ATELIER_DRAIN_SECONDS"]) >= 5  # for endpoints to go round
    assert grace["gateway"] >= float(settings["ATELIER_DRAIN_SECONDS"]) + float(settings["ATELIER_DRAIN_PATIENCE"]) + 10
    for task in WORKERS:
        said = cluster.container(task)["lifecycle"]["preStop"]["exec"]["command"][-1]
        stop = re.fullmatch(r"touch (\S+) && sleep (\d+)", said)
        assert stop
        assert stop[1] == cluster.environment(task)["ATELIER_DRAIN_FILE"]
        longest_look = GatewaySettings().probe_interval * JITTER[1] + PROBE_SECONDS
        assert int(stop[2]) >= 2 * longest_look
        assert grace[task] >= int(stop[2]) + GatewaySettings().deadline + 10


def test_all_but_the_studio_are_scaled_each_by_itself(cluster: Cluster) -> None:
    scalers = cluster.all("HorizontalPodAutoscaler")
    assert set(scalers) == set(cluster.all("PodDisruptionBudget")) == {"gateway", *WORKERS}
    for name, scaler in scalers.items():
        assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert "replicas" not in cluster.all("Deployment")[name]["spec"]  # or each `apply` would undo the scaling
        (spread,) = cluster.pods[name]["spec"]["topologySpreadConstraints"]
        assert cluster.selected(spread["labelSelector"]["matchLabels"]) == {name}
    assert scalers["gateway"]["spec"]["minReplicas"] > 1


def metric(scaler: Manifest) -> str:
    (found,) = scaler["spec"]["metrics"]
    name: str = (found.get("resource") or found["pods"]["metric"])["name"]
    return name


def test_processors_are_counted_on_processors_and_queues_on_gpus(cpu: Cluster, gpu: Cluster) -> None:
    queue = re.search(r'Gauge\(\s*"(atelier_queue_length)"', (ROOT / "services/engine/metrics.py").read_text())
    assert queue
    for task in WORKERS:
        assert metric(cpu.all("HorizontalPodAutoscaler")[task]) == "cpu"
        assert metric(gpu.all("HorizontalPodAutoscaler")[task]) == queue[1]


def test_each_worker_has_a_gpu_or_none(cpu: Cluster, gpu: Cluster) -> None:
    for cluster, device, num_gpus in ((cpu, "cpu", None), (gpu, "cuda", "1")):
        for task in WORKERS:
            assert cluster.environment(task)["ATELIER_DEVICE"] == device
            assert cluster.container(task)["resources"]["limits"].get("nvidia.com/gpu") == num_gpus
        others = [cluster.container(name) for name in cluster.pods if name not in WORKER_NAMES]
        assert not any("nvidia.com/gpu" in other["resources"]["limits"] for other in others)


def test_volumes_that_several_mount_can_be(cluster: Cluster) -> None:
    claims = cluster.all("PersistentVolumeClaim")
    assert {claim["spec"]["accessModes"][0] for claim in claims.values()} <= {"ReadWriteMany"}
    for name, pod in cluster.pods.items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in cluster.container(name)["volumeMounts"]} == set(volumes)
        named = {volume["persistentVolumeClaim"]["claimName"] for volume in claimed(volumes)}
        assert named <= set(claims)


def claimed(volumes: Mapping[str, Manifest]) -> Iterator[Manifest]:
    return (volume for volume in volumes.values() if "persistentVolumeClaim" in volume)

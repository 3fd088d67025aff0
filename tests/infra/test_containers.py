"""The stack in containers: its files fit the schemas of their tools, and hold what SECURITY.md promises."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.secrets import FOLDERS, contents, write

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "infra/compose/compose.yaml"
FOLDER = ROOT / "infra/kubernetes"
KUSTOMIZATIONS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
VERSIONS = ("1.31", "1.36")  # of Kubernetes


def kustomization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def resources() -> list[dict[str, Any]]:
    return [
        content
        for folder in KUSTOMIZATIONS
        for name in kustomization(folder)["resources"]
        for content in yaml.safe_load_all((folder / name).read_text())
    ]


def pods() -> list[tuple[str, dict[str, Any]]]:
    kinds = ("Deployment", "StatefulSet", "Job")
    return [(r["metadata"]["name"], r["spec"]["template"]) for r in resources() if r["kind"] in kinds]


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, container)
        for name, pod in pods()
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
    ]


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def pinned(image: str) -> bool:
    tag = image.rpartition(":")[2]
    return ":" in image and bool(re.search(r"\d+\.\d+", tag))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_kubernetes_own_schema(version: str) -> None:
    import kubernetes_validate

    for content in resources():
        kubernetes_validate.validate(content, version, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="left out: no kubectl here")
@pytest.mark.parametrize("folder", [folder.name for folder in KUSTOMIZATIONS])
def test_what_kubectl_makes_of_a_kustomization_fits_the_schema_and_finds_its_secrets(
    folder: str, tmp_path: Path
) -> None:
    import kubernetes_validate

    shutil.copytree(FOLDER, tmp_path / "infra/kubernetes", ignore=shutil.ignore_patterns("secrets"))
    write(tmp_path / FOLDERS[1])
    command = ["kubectl", "kustomize", str(tmp_path / "infra/kubernetes" / folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    contents = list(yaml.safe_load_all(built))
    for content in contents:
        kubernetes_validate.validate(content, VERSIONS[-1], strict=True)
        assert content["kind"] == "Namespace" or content["metadata"]["namespace"] == "vitrail"
    secrets = [content["metadata"]["name"] for content in contents if content["kind"] == "Secret"]
    for name in secrets:  # with a digest behind it: pods start again when a password changes
        assert built.count(name) > 1, f"{name} is used by no pod"


def test_the_schema_finds_a_wrong_key() -> None:
    import kubernetes_validate

    wrong = next(content for content in resources() if content["kind"] == "Job")
    wrong["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_compose_file_fits_composes_own_schema() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="left out: compose-spec has no wheel for this machine")
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", COMPOSE.read_text())
    merged = json.dumps(yaml.safe_load(text))  # anchors and defaults resolved
    compose_spec.PyCompose.from_json(merged).validate()
    with pytest.raises(Exception, match="prots"):
        compose_spec.PyCompose.from_json(merged.replace('"ports"', '"prots"', 1)).validate()


def test_every_file_of_a_kustomization_is_there_and_used() -> None:
    for folder in KUSTOMIZATIONS:
        content = kustomization(folder)
        assert content["namespace"] == "vitrail"
        assert set(content["resources"]) == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    made = contents()
    for entry in kustomization(FOLDER / "stack")["secretGenerator"]:
        for name in [*entry.get("envs", []), *entry.get("files", [])]:
            assert name.removeprefix("secrets/") in made


def test_every_secret_and_claim_that_a_pod_names_is_made() -> None:
    made = {entry["name"] for entry in kustomization(FOLDER / "stack")["secretGenerator"]}
    claims = {content["metadata"]["name"] for content in resources() if content["kind"] == "PersistentVolumeClaim"}
    for _, container in containers():
        assert {source["secretRef"]["name"] for source in container.get("envFrom", [])} <= made
    for name, pod in pods():
        for volume in pod["spec"].get("volumes", []):
            assert volume.get("secret", {"secretName": next(iter(made))})["secretName"] in made, name
            assert volume.get("persistentVolumeClaim", {"claimName": "vitrail"})["claimName"] in claims, name


@pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
def test_no_pod_is_root_or_can_become_it(name: str, pod: dict[str, Any]) -> None:
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"].get("automountServiceAccountToken") is False or pod["spec"]["serviceAccountName"] == "worker"
    for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pinned(container["image"]), container["image"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_servers_say_when_they_are_ready_and_when_they_hang() -> None:
    for name, pod in pods():
        for container in pod["spec"]["containers"]:
            if name == "vitrail-pretrain":
                continue  # its ranks watch each other (components/training/ranks/watch.py), and leave when one is lost
            assert {"startupProbe", "livenessProbe"} <= container.keys(), name


def test_the_network_is_closed_and_opened_by_name() -> None:
    policies = {
        content["metadata"]["name"]: content["spec"] for content in resources() if content["kind"] == "NetworkPolicy"
    }
    assert policies["nothing-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for content in resources():
        if content["kind"] == "Service":
            assert content["spec"].get("type", "ClusterIP") == "ClusterIP"  # nothing is reachable from outside
    labels = [pod["metadata"]["labels"] for _, pod in pods()]
    for name, spec in policies.items():  # every policy is about pods that there are
        wanted = spec["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= label.items() for label in labels), name
    namespace = next(content for content in resources() if content["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_password_is_written_in_any_file() -> None:
    written = re.compile(r"(?i)(password|secret_key|token|auth_string)\s*[:=]\s*['\"]?[\w+/-]{6,}")
    for path in [COMPOSE, *FOLDER.rglob("*.yaml")]:
        if "secrets" not in path.parts:
            assert not written.search(path.read_text()), path
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{folder}/" for folder in FOLDERS} <= set(ignored)


@pytest.mark.parametrize(("name", "service"), services().items(), ids=list(services()))
def test_a_service_in_compose_is_pinned_without_root_and_on_loopback(name: str, service: dict[str, Any]) -> None:
    assert pinned(service["image"])
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert name == "bucket" or "healthcheck" in service  # which ends by itself
    secrets = contents()
    for file in service["env_file"]:
        if file.startswith("secrets/"):
            assert file.removeprefix("secrets/") in secrets
        else:
            assert (ROOT / "infra/compose" / file).resolve().is_file()


def test_every_server_asks_for_a_password() -> None:
    made = contents()
    assert "POSTGRES_PASSWORD=" in made["postgres.env"]
    assert "ROOT_SECRET_KEY=" in made["s3.env"]
    assert "PREFECT_SERVER_API_AUTH_STRING=" in made["prefect.env"]
    assert "admin_password = " in made["mlflow-auth.ini"]
    for name, command, env in (
        ("mlflow", services()["mlflow"]["command"], services()["mlflow"]["env_file"]),
        ("pod", next(c["command"] for _, c in containers() if c["name"] == "mlflow"), ["secrets/mlflow.env"]),
    ):
        assert command[command.index("--app-name") + 1] == "basic-auth", name
        assert "secrets/mlflow.env" in env
    for pod, container in containers():
        if "ray" in container.get("command", []):
            assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"], pod
    for name in ("ray-head", "ray-worker", "worker"):
        assert services()[name]["environment"]["RAY_AUTH_MODE"] == "token"


def test_passwords_are_made_once_and_read_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert write(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert not write(folder)
    assert files == {path.name: path.read_text() for path in folder.iterdir()}
    assert contents()["postgres.env"] != contents()["postgres.env"]
    # A server's clients know its password; the S3 keys and the database's are one each, wherever they are needed.
    access = re.search(r"ROOT_SECRET_KEY=(\S+)", files["s3.env"])
    assert access is not None
    assert all(access[1] in files[name] for name in ("mlflow.env", "worker.env", "ray.env"))
    database = re.search(r"POSTGRES_PASSWORD=(\S+)", files["postgres.env"])
    assert database is not None
    assert {name for name, text in files.items() if database[1] in text} == {
        "postgres.env", "prefect.env", "mlflow.env", "mlflow-auth.ini"
    }  # fmt: skip


def test_the_image_is_built_from_the_lock_and_runs_without_root() -> None:
    text = (ROOT / "infra/compose/Dockerfile").read_text()
    assert "--require-hashes --no-deps" in text
    installed = text.replace("$EXTRA", "gpu")
    assert {"build", "gpu", "ray", "servers"} == set(re.findall(r"-r requirements/(\w+)\.lock", installed))
    assert all((ROOT / f"requirements/{name}.lock").is_file() for name in ("build", "cpu", "gpu", "ray", "servers"))
    assert all(pinned(image) for image in re.findall(r"^(?:FROM|COPY --from=)\s*(\S+)", text, re.M))
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "10001:10001"
    for command in {
        service["command"][0] for service in services().values() if isinstance(service.get("command"), list)
    }:
        assert command in ("python", "prefect", "mlflow", "ray", "--port")

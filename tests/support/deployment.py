"""What compose and Kubernetes would give each container of ours, laid out in a folder: its environment and its files.

Above: tests/integration/test_deploy*.py. Reads the deployment files as the engines do, in the parts that matter:
interpolation, secrets, config maps, projected volumes and init containers.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from click.testing import CliRunner

from rag.cli.secrets import secrets
from rag.settings import Settings

__all__ = [
    "COMPOSE_VARIABLES",
    "PROFILES",
    "ROOT",
    "SERVERS",
    "SERVICES",
    "Container",
    "compose",
    "containers_of",
    "free_port",
    "init_secrets",
    "kustomize",
    "needs_kubectl",
    "pods",
    "postgres_options",
    "secret_manifests",
]

ROOT = Path(__file__).parents[2]
BOUND_S = 60.0
IMAGE = "bulkhead"
SERVERS = {"mcp-server", "a2a-server", "worker"}
SERVICES = SERVERS | {"maintenance"}
"""What runs all the time."""
COMPOSE_VARIABLES = {
    "SECRETS_UID": "10001",
    "SECRETS_GID": "10001",
    "SIGNING_KID": "kid",
    "OUTWARD_KID": "kid",
    "SECRETS_DIR": "/secrets",
}
Yaml = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs the kubectl client; none is here")
PROFILES = ["compose", pytest.param("k8s", marks=needs_kubectl)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of our image."""

    name: str
    image: str
    entrypoint: list[str]
    """Replaces the image's, unless empty."""
    arguments: list[str]
    environment: dict[str, str]
    root: Path
    """Stands for / inside the container; holds the files that are mounted there."""

    @property
    def settings(self) -> Settings:
        """What the process would read; paths lead to the files under `root`."""
        return Settings.from_env(
            {
                name: f"{self.root}{value}" if value.startswith("/run/") else value
                for name, value in self.environment.items()
            }
        )


def init_secrets(directory: Path, *arguments: str) -> str:
    """Run `bulkhead secrets init` and return what it printed."""
    result = CliRunner().invoke(secrets, ["init", str(directory), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def containers_of(profile: str, secrets_dir: Path, target: Path) -> dict[str, Container]:
    """Lay out, under `target`, all containers of our image as compose or Kubernetes (`k8s`) would start them."""
    if profile == "compose":
        found = _compose_containers(secrets_dir, target)
    else:
        found = _kubernetes_containers(
            [*kustomize("k8s/overlays/gpu"), *kustomize("k8s/operator")], secrets_dir, target
        )
    containers = {container.name: container for container in found}
    assert set(containers) == SERVICES | {"migrate", "operator"}
    return containers


def postgres_options(profile: str) -> dict[str, str]:
    """Return the options (`-c name=value`) that the profile starts PostgreSQL with."""
    if profile == "compose":
        arguments: list[str] = compose(COMPOSE_VARIABLES)["services"]["postgres"]["command"]
    else:
        (pod,) = pods(list(yaml.safe_load_all((ROOT / "k8s" / "base" / "postgres.yaml").read_text())))
        arguments = pod["containers"][0]["args"]
    assert arguments[0] == "postgres"
    assert arguments[1::2] == ["-c"] * (len(arguments) // 2)
    return dict(option.split("=", 1) for option in arguments[2::2])


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def compose(environment: Mapping[str, str]) -> Yaml:
    """Return docker-compose.yml with its variables filled in from `environment`.

    Raises:
        KeyError: A required variable (`${NAME:?reason}`) is missing.
    """
    return cast("Yaml", _interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), environment))


def _compose_containers(secrets_dir: Path, target: Path) -> list[Container]:
    """Lay out the containers of docker-compose.yml that run our image, with the secrets of `secrets_dir`."""
    lines = (secrets_dir / "compose.env").read_text().splitlines()
    file = compose(dict(line.split("=", 1) for line in lines if not line.startswith("#")))
    return [
        _compose_container(name, service, file["secrets"], target / name)
        for name, service in file["services"].items()
        if service["image"].split(":")[0] == IMAGE
    ]


def _compose_container(name: str, service: Yaml, known: Mapping[str, Yaml], root: Path) -> Container:
    for entry in service.get("secrets", []):
        source, path = (entry["source"], entry["target"]) if isinstance(entry, dict) else (entry, entry)
        inside = root / (path.removeprefix("/") if path.startswith("/") else f"run/secrets/{path}")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(known[source]["file"], inside)  # a bind mount keeps the mode
    return Container(
        name=name,
        image=service["image"],
        entrypoint=service.get("entrypoint", []),
        arguments=service.get("command", []),
        environment={key: str(value) for key, value in service["environment"].items()},
        root=root,
    )


def kustomize(directory: str) -> list[Yaml]:
    """Return the objects of a kustomization."""
    return _yaml_documents(["kubectl", "kustomize", str(ROOT / directory)])


def secret_manifests(secrets_dir: Path) -> list[Yaml]:
    """Return the Secrets that k8s/secrets.sh makes of `secrets_dir`."""
    return _yaml_documents(["sh", str(ROOT / "k8s" / "secrets.sh"), str(secrets_dir)])


def _kubernetes_containers(objects: list[Yaml], secrets_dir: Path, target: Path) -> list[Container]:
    """Lay out the containers among `objects` that run our image, with Secrets made from `secrets_dir`.

    Raises:
        KeyError: A pod refers to a Secret, ConfigMap or key that nothing makes.
    """
    known = {(entry["kind"], entry["metadata"]["name"]): entry for entry in [*objects, *secret_manifests(secrets_dir)]}
    return [
        _pod_container(container, pod, known, target / container["name"])
        for pod in pods(objects)
        for container in pod["containers"]
        if container["image"].split(":")[0] == IMAGE
    ]


def pods(objects: list[Yaml]) -> Iterator[Yaml]:
    """Yield every pod specification among `objects`."""
    for entry in objects:
        if entry["kind"] == "Pod":
            yield entry["spec"]
        elif "template" in entry.get("spec", {}):
            yield entry["spec"]["template"]["spec"]


def _pod_container(container: Yaml, pod: Yaml, known: Mapping[tuple[str, str], Yaml], root: Path) -> Container:
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environment |= known["ConfigMap", source["configMapRef"]["name"]]["data"]
    environment |= {entry["name"]: entry["value"] for entry in container.get("env", [])}
    volumes = root / "volumes"
    for volume in pod["volumes"]:
        _fill(volumes / volume["name"], volume, known)
    for init in pod.get("initContainers", []):
        _run_init(init, volumes)
    for mount in container["volumeMounts"]:
        inside = root / mount["mountPath"].removeprefix("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(volumes / mount["name"], inside)
    return Container(
        name=container["name"],
        image=container["image"],
        entrypoint=container.get("command", []),
        arguments=container.get("args", []),
        environment=environment,
        root=root,
    )


def _fill(directory: Path, volume: Yaml, known: Mapping[tuple[str, str], Yaml]) -> None:
    directory.mkdir(parents=True)
    secret = volume.get("secret")
    sources: list[Yaml] = [{"name": secret["secretName"]}] if secret else []
    sources += [source["secret"] for source in volume.get("projected", {}).get("sources", [])]
    for source in sources:
        data = known["Secret", source["name"]]["data"]
        items = source.get("items", [{"key": key, "path": key} for key in data])
        for item in items:
            path = directory / item["path"]
            assert not path.exists(), f"two sources of one volume both hold {item['path']}"
            path.write_bytes(base64.b64decode(data[item["key"]]))
            path.chmod((secret or volume["projected"])["defaultMode"])


def _run_init(container: Yaml, volumes: Path) -> None:
    """Run an init container's command for real, its mounts replaced by our folders."""
    command = " ".join(container["command"][2:])
    assert container["command"][:2] == ["sh", "-c"]
    for mount in container["volumeMounts"]:
        command = command.replace(mount["mountPath"], str(volumes / mount["name"]))
    subprocess.run(["sh", "-c", command], check=True, timeout=BOUND_S)


def _yaml_documents(command: list[str]) -> list[Yaml]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr
    return [cast("Yaml", document) for document in yaml.safe_load_all(done.stdout) if document]


_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")


def _interpolated(value: object, environment: Mapping[str, str]) -> object:
    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        text = environment.get(name, "")
        if text == "" and match["kind"] == "?":
            raise KeyError(name)
        return text or (match["rest"] or "" if match["kind"] == "-" else "")

    return json.loads(_VARIABLE.sub(lambda match: json.dumps(replacement(match))[1:-1], json.dumps(value)))

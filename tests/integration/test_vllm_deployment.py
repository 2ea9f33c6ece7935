"""The deployment files of vLLM against each other: its options, the pods that read them, and the worker that asks it.

Whether vLLM knows the options is asked of a real one: tests/vllm/test_options.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from rag.settings import Settings
from tests.support.deployment import COMPOSE_VARIABLES, ROOT, compose, kustomize, needs_kubectl, pods

OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/vllm.conf.yaml"))
KEPT_BY_OUR_CLIENT_S = 5
"""httpx keeps an idle connection so long."""


def _options(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def _objects(overlay: str) -> list[dict[str, Any]]:
    return kustomize(f"k8s/overlays/{overlay}")


def _pod(overlay: str, name: str) -> dict[str, Any]:
    (found,) = [pod for pod in pods(_objects(overlay)) if pod["containers"][0]["name"] == name]
    return found


def _named(overlay: str, kind: str, name: str) -> dict[str, Any]:
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in _objects(overlay)}
    return objects[kind, name]


def test_one_gpu_several_and_both_quantisations_have_files() -> None:
    assert OVERLAYS == ["gpu", "gpu-awq", "gpu-fp8", "gpus"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tenants_are_kept_apart_their_text_out_of_the_log_and_their_tokens_are_counted(overlay: str) -> None:
    options = _options(ROOT / "k8s" / "overlays" / overlay / "vllm.conf.yaml")
    assert options["enable-prefix-caching"] is True
    assert options["prefix-caching-hash-algo"] == "sha256"
    assert options["enable-prompt-tokens-details"] is True
    assert options["enable-log-requests"] is False


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_has_what_its_options_need(overlay: str) -> None:
    pod = _pod(overlay, "vllm")
    (container,) = pod["containers"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "options"]
    data = _named(overlay, "ConfigMap", volume["configMap"]["name"])["data"]
    options: dict[str, Any] = yaml.safe_load(data["vllm.conf.yaml"])
    assert options == _options(ROOT / "k8s" / "overlays" / overlay / "vllm.conf.yaml")
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "options"]
    assert f"--config {mount['mountPath']}/vllm.conf.yaml" in container["args"][0]
    gpus = options.get("tensor-parallel-size", 1) * options.get("data-parallel-size", 1)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert container["resources"]["requests"]["nvidia.com/gpu"] == gpus
    assert pod["terminationGracePeriodSeconds"] > options["shutdown-timeout"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_worker_asks_for_the_model_that_is_served_as_one_asks_a_vllm(overlay: str) -> None:
    (container,) = _pod(overlay, "worker")["containers"]
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        environment |= _named(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    told = {name: value for name, value in environment.items() if name.startswith("BULKHEAD_LLM")}
    settings = Settings.from_env(told)
    assert settings.llm_kind == "vllm"
    assert settings.llm_model == _options(ROOT / "k8s" / "overlays" / overlay / "vllm.conf.yaml")["model"]
    url = urlsplit(settings.llm_url or "")
    service = _named(overlay, "Service", "vllm")["spec"]
    assert (url.hostname, url.port) == ("vllm", service["ports"][0]["port"])


@needs_kubectl
def test_spans_reach_the_collector_through_the_policies() -> None:
    target = urlsplit(_options(ROOT / "k8s" / "overlays" / "gpu" / "vllm.conf.yaml")["otlp-traces-endpoint"])
    assert (target.hostname, target.path) == ("otel-collector", "/v1/traces")
    outward = _named("gpu", "NetworkPolicy", "out-of-vllm-to-otel-collector")["spec"]
    inward = _named("gpu", "NetworkPolicy", "from-vllm-into-otel-collector")["spec"]
    assert outward["podSelector"]["matchLabels"] == {"app": "vllm"}
    assert outward["egress"] == [
        {"to": [{"podSelector": {"matchLabels": {"app": target.hostname}}}], "ports": [{"port": target.port}]}
    ]
    assert inward["podSelector"]["matchLabels"] == {"app": target.hostname}
    assert inward["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {"app": "vllm"}}}], "ports": [{"port": target.port}]}
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_compose_starts_it_with_the_options_of_an_overlay(overlay: str) -> None:
    file = compose({**COMPOSE_VARIABLES, "VLLM_OPTIONS": overlay})
    service = file["services"]["vllm"]
    (mounted,) = service["configs"]
    options = _options(ROOT / file["configs"][mounted["source"]]["file"])
    assert options == _options(ROOT / "k8s" / "overlays" / overlay / "vllm.conf.yaml")
    assert f"--config {mounted['target']}" in service["command"][0]
    assert int(service["stop_grace_period"].removesuffix("s")) > options["shutdown-timeout"]
    shared = set(service["networks"]) & set(file["services"]["otel-collector"]["networks"])
    assert shared == {"model-telemetry"}
    assert file["networks"]["model-telemetry"] == {"internal": True}
    assert set(service["networks"]) & set(file["services"]["worker"]["networks"]) == {"edge"}


@needs_kubectl
def test_compose_and_kubernetes_give_it_the_same_environment() -> None:
    (container,) = _pod("gpu", "vllm")["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    composed = compose(COMPOSE_VARIABLES)["services"]["vllm"]["environment"]
    assert given.items() >= composed.items()
    assert int(composed["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > KEPT_BY_OUR_CLIENT_S

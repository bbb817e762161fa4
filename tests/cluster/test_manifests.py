"""What deploys the service with Ray is what Ray, Kubernetes and each other take."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pigeonhole.settings import Settings
from tests.conftest import ROOT

SERVE = ROOT / "deploy" / "ray-serve.yaml"
SERVICE, POLICY = yaml.safe_load_all((ROOT / "deploy" / "ray-service.yaml").read_text())
GROUPS = [
    SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"],
    *SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"],
]
# of KubeRay's ray-operator/apis/ray/v1/raycluster_types.go; authOptions came with 1.5.1
FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
# whose names the service does not know: Ray's, Python's and the system's
NOT_OURS = {"RAY_USAGE_STATS_ENABLED", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "PYTHONPATH", "HOME"}


def test_serve_takes_the_config() -> None:
    """Ray's own schema knows each field of ray-serve.yaml, and the app that it names can be imported."""
    code = (
        "import sys, yaml; from ray.serve.schema import ServeDeploySchema; from ray._common.utils import import_attr;"
        "config = ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin));"
        "print(import_attr(config.applications[0].import_path))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], input=SERVE.read_text(), cwd=ROOT, capture_output=True, text=True
    )
    assert "Application" in told.stdout, told.stderr


def test_both_say_the_same() -> None:
    """KubeRay serves what ray-serve.yaml says, to other machines."""
    here, there = yaml.safe_load(SERVE.read_text()), yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    assert there["http_options"].pop("host") == "0.0.0.0"
    assert here["http_options"].pop("host") == "127.0.0.1"
    assert there == here


@pytest.mark.parametrize("version", ["1.30.0", "1.34.0"])
def test_kubernetes_takes_the_pods(version: str) -> None:
    """Pods and policy fit Kubernetes' schemas, which forbid unknown fields; the cluster's fields are KubeRay's."""
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]} for group in GROUPS]
    for manifest in (*pods, POLICY):
        kubernetes_validate.validate(manifest, version, strict=True)
    assert set(SERVICE["spec"]["rayClusterConfig"]) == FIELDS


@pytest.mark.parametrize("group", GROUPS, ids=("head", "replicas"))
def test_pods_are_confined(group: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pod runs as root, writes outside of its volumes or gains rights, and their settings are settings."""
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    named = {one["name"]: one["value"] for one in container["env"]}
    assert {name for name in named if name.lower() not in Settings.model_fields} == NOT_OURS
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert Settings.load().model == "/app/export.onnx"
    assert (named["RAY_USAGE_STATS_ENABLED"], group["rayStartParams"]["disable-usage-stats"]) == ("0", "true")

"""deploy/ is what Compose, Kubernetes and Heroku can read, and says of our settings only what they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pigeonhole.settings import Settings
from pigeonhole.web.access import PROBES
from tests.conftest import ROOT

FOLDER = ROOT / "deploy"
DOCKER_COMPOSE = Path(sys.executable).with_name("docker-compose")  # Docker's own, out of a package of [dev-packages]
KUBERNETES = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
OURS = ("serve", "dev", "replica")  # Compose's services that are this one
APP_JSON = json.loads((ROOT / "app.json").read_text())
HEROKU = yaml.safe_load((ROOT / "heroku.yml").read_text())


def of_kind(kind: str) -> Any:
    (found,) = [manifest for manifest in KUBERNETES if manifest["kind"] == kind]
    return found


CONTAINER = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
@pytest.mark.parametrize("manifest", KUBERNETES, ids=[manifest["kind"] for manifest in KUBERNETES])
def test_kubernetes_takes_it(manifest: dict[str, Any], version: str) -> None:
    """Each manifest is what Kubernetes allows, from the oldest version that it is for; no field is unknown."""
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("service", [*COMPOSE["services"], "*"])
def test_compose_takes_it(service: str) -> None:
    """Docker's Compose finds compose.yaml in order, and starts what each service depends on."""
    of = ["--profile", "*"] if service == "*" else []
    command = [DOCKER_COMPOSE, "-f", FOLDER / "compose.yaml", *of, "config", "--format", "json"]
    result = subprocess.run(command + ([] if service == "*" else [service]), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert service in [*json.loads(result.stdout)["services"], "*"]


def environments() -> Iterator[Any]:
    yield pytest.param(
        {name: told["value"] for name, told in APP_JSON["env"].items() if "value" in told}, id="app.json"
    )
    yield pytest.param({variable["name"]: variable["value"] for variable in CONTAINER["env"]}, id="kubernetes.yaml")
    for name in OURS:
        yield pytest.param(COMPOSE["services"][name]["environment"], id=f"compose.yaml {name}")


@pytest.mark.parametrize("environment", list(environments()))
def test_settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for the service is a setting, and a value that it takes."""
    assert {name for name in environment if name.lower() not in Settings.model_fields} == set()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert {one.name: one.value for one in Settings.load().listed() if one.name in environment} == environment


def test_heroku_asks_for_settings() -> None:
    """What Heroku's button asks for are settings; what is asked for without a value may stay empty."""
    assert {name for name in APP_JSON["env"] if name.lower() not in Settings.model_fields} == set()
    assert [name for name, told in APP_JSON["env"].items() if "value" not in told and told["required"]] == []
    assert APP_JSON["env"]["TRUSTED_PROXIES"]["value"] == "1"  # its router is one


def test_heroku_builds_the_image() -> None:
    """Heroku builds the Dockerfile, whose last stage is what is served, and starts it by the image's own command."""
    assert HEROKU["build"]["docker"] == {"web": "Dockerfile"}
    assert "run" not in HEROKU
    assert APP_JSON["stack"] == "container"
    assert re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1] == "serve"


@pytest.mark.parametrize("name", ["app.json", "heroku.yml"])
def test_heroku_finds_them(name: str) -> None:
    """What lies in deploy/ for Heroku is what lies where Heroku looks, at the root."""
    assert (FOLDER / name).resolve() == ROOT / name
    assert not (ROOT / name).is_symlink()  # what unpacks an archive for the button may not follow one


def test_nobody_gets_past_nginx() -> None:
    """The service that believes a proxy has no port of its own, and no network that leads out."""
    replica = COMPOSE["services"]["replica"]
    assert replica["environment"]["TRUSTED_PROXIES"] == "1"
    assert replica["ports"] == []
    assert [COMPOSE["networks"][network] for network in replica["networks"]] == [{"internal": True}]
    assert "TRUSTED_PROXIES" not in COMPOSE["services"]["serve"]["environment"]


def test_ports_are_for_this_machine() -> None:
    """Unless somebody says otherwise, Compose opens ports on the loopback address only."""
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) >= 5
    assert [port for port in ports if not re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port)] == []


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_rights(name: str) -> None:
    """No container has a capability or can get one, and those that serve have a root that nobody can write to."""
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only") is (None if name == "dev" else True)


def test_images_are_pinned() -> None:
    """Images of others have a version."""
    images = [service["image"] for name, service in COMPOSE["services"].items() if name not in OURS]
    assert [image for image in images if not re.search(r":v?\d+\.\d+", image)] == []


def seconds_to_drain() -> int:
    return int(
        re.findall(r"^graceful_timeout = (\d+)", (ROOT / "pigeonhole" / "gunicorn_conf.py").read_text(), re.M)[0]
    )


def test_time_to_stop() -> None:
    """What is stopped gets the time to answer what it accepted and, in Kubernetes, to wait before."""
    assert all(
        int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > seconds_to_drain() for name in OURS
    )
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    wait = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + seconds_to_drain()


def test_who_is_meant() -> None:
    """Service, budget and policy select the pods of the deployment, and reach the port that it names."""
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        of_kind("Deployment")["spec"]["selector"]["matchLabels"],
        of_kind("Service")["spec"]["selector"],
        of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * 4
    (port,) = CONTAINER["ports"]
    assert [
        of_kind("Service")["spec"]["ports"][0]["targetPort"],
        of_kind("NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"],
    ] == [port["name"]] * 2
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of_kind("Deployment")["metadata"]["name"]
    )


def test_probes() -> None:
    """Kubernetes asks addresses that the service answers without a key, and by whatever name."""
    asked = {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"/ping", "/ready"} <= set(PROBES)


TEXT = "".join(path.read_text() for path in [*ROOT.glob("README*.md"), *FOLDER.glob("*.yaml")])
NEEDED = {"nginx": "replica", "grafana": "prometheus"}
COMPOSE_UP = r"docker compose -f deploy/compose.yaml up((?: [\w=-]+)*)"


@pytest.mark.parametrize("words", sorted(set(re.findall(COMPOSE_UP, TEXT))))
def test_composes_commands(words: str) -> None:
    """Compose finds every service that it is told to start, and starts with it what it needs."""
    services = words.replace("--scale replica=3", "").split()
    command = [DOCKER_COMPOSE, "-f", FOLDER / "compose.yaml", "config", "--format", "json", *services]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = {*services, *(NEEDED[name] for name in services if name in NEEDED)} or {"serve"}
    assert set(json.loads(result.stdout)["services"]) == expected


def test_kubernetes_commands() -> None:
    """The told `sed` names an image, and the told secret is the one whose settings the deployment takes."""
    (sed,) = set(re.findall(r'sed "s.*?" deploy/kubernetes.yaml', TEXT))
    named = subprocess.run(sed, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    images = re.findall(r"image: (\S+)", named.partition("apiVersion")[2])
    assert images == ["REGISTRY/pigeonhole:1"]
    (secret,) = set(re.findall(r"create secret generic (\w+)", TEXT))
    assert CONTAINER["envFrom"][0]["secretRef"]["name"] == secret

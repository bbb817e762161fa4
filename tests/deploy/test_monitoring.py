"""The dashboard and deploy/prometheus.yml, with Debian's Prometheus and the real service's /metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Server, StartServer, free_port
from tests.test_serving import JPEG, post

FOLDER = ROOT / "deploy"
DASHBOARD = json.loads((FOLDER / "grafana" / "pigeonhole.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return bytes(response.read())


@pytest.fixture(scope="module")
def service(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return start_server(UPLOADS=str(tmp_path_factory.mktemp("watched")))


@pytest.fixture(scope="module")
def prometheus(service: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It asks the service as prometheus.yml says but far oftener, and sees a photo and nonsense come."""
    if PROMETHEUS is None:
        pytest.skip("prometheus is not here")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "500ms"
    (job,) = config["scrape_configs"]
    assert job.pop("dns_sd_configs")[0]["port"] == 5000
    job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([PROMETHEUS, *options], cwd=folder, stdout=log, stderr=log)
    server = Server(f"http://127.0.0.1:{port}", process, folder / "log")
    try:
        _until_scraped(server)
        for _ in range(2):  # a series that begins with 1 has no rate yet
            assert (post(service, JPEG)[0], post(service, b"nonsense")[0]) == (200, 415)
            time.sleep(1.5)
        yield server
    finally:
        server.stop()


def _until_scraped(server: Server) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if ask(server, "up == 1"):
                return
        except OSError:
            assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())


def ask(server: Server, query: str) -> list[Any]:
    query = query.replace("$__rate_interval", "1m")  # what Grafana puts there
    answer = json.loads(get(f"{server.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    assert answer["status"] == "success"
    return list(answer["data"]["result"])


@pytest.mark.parametrize("query", QUERIES)
def test_queries(prometheus: Server, query: str) -> None:
    """Prometheus answers each query of the dashboard with numbers."""
    values = [float(sample["value"][1]) for sample in ask(prometheus, query)]
    assert values
    assert any(value == value for value in values)  # NaN, where nothing was measured, is no number


def test_names(service: Server) -> None:
    """Every metric and label that the dashboard asks for, the service's /metrics has."""
    post(service, JPEG)
    told = get(service.url + "/metrics").decode()
    asked = " ".join(query.values[0] for query in QUERIES)
    names = set(re.findall(r"\b(?:pigeonhole|process)_\w+", asked))
    labels = {label for found in re.findall(r"by \(([\w, ]+)\)", asked) for label in found.split(", ")}
    assert [name for name in sorted(names) if not re.search(rf"^{name}[ {{]", told, re.M)] == []
    assert [label for label in sorted(labels) if f'{label}="' not in told] == []


def test_what_is_shown() -> None:
    """Each metric of ours that changes is on the dashboard, and no two panels lie on each other."""
    asked = " ".join(query.values[0] for query in QUERIES)
    readme = re.findall(r"^\| `(pigeonhole_\w+)`", (ROOT / "README.md").read_text(), re.M)
    assert [name for name in readme if name != "pigeonhole_build_info" and name not in asked] == []
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23  # Grafana has 24 columns


def test_the_source() -> None:
    """Panels ask the source of data that Grafana is given, which is the Prometheus of compose.yaml."""
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here")
def test_promtool() -> None:
    """Prometheus' own tool finds prometheus.yml in order."""
    result = subprocess.run([PROMTOOL, "check", "config", FOLDER / "prometheus.yml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

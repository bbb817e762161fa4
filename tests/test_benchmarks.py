"""The benchmark counts rightly, shows what it counted, and asks the servers whose environments are there."""

from __future__ import annotations

import asyncio
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import growth, phases, report
from benchmarks.contest import USUAL, Photos, Plan, contest, empty_server
from benchmarks.environments import DONE, PEERS
from benchmarks.figures import Figure, percentile, rounded
from benchmarks.load import Job, multipart, parsed, run
from benchmarks.photos import made_up, photo, sources
from benchmarks.servers import EVERYONE, FRAMEWORKS, open_inference
from pigeonhole.model.card import read_card
from pigeonhole.model.recipe import Resize
from tests.conftest import ROOT, encoded, free_port
from tests.model.test_exports_compiled import FOLDER

PEER = next(peer for peer in EVERYONE if peer.key == "flask-openvino")


def test_figures() -> None:
    """Percentiles are values that were measured, by nearest rank; a figure is the median and the range."""
    times = [float(number) for number in range(1, 101)]
    assert [percentile(times, share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]
    assert percentile([7], 0.99) == 7
    assert math.isnan(percentile([], 0.5))
    assert [str(Figure.of(values)) for values in ([3.0, 1.0, 2.0], [3.0])] == ["2.00 (1.00–3.00)", "3.00"]
    assert [rounded(value) for value in (1234.5, 12.345, 0.012345, 0.0)] == ["1,234", "12.3", "0.012", "0"]


@pytest.mark.parametrize("length", [0, 20, 40, 60])
def test_a_part_of_an_answer_is_none(length: int) -> None:
    """An answer counts once it is whole, whether its length is announced or it comes in chunks."""
    counted = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"success":"a"}'
    chunked = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"success":"a"}\r\n0\r\n\r\n'
    for whole in (counted, chunked):
        assert parsed(whole[:length]) is None or length >= len(whole)
        status, body = parsed(whole) or (0, b"")
        assert (status, b'"a"' in body) == (200, True)


@pytest.fixture
def empty() -> Iterator[int]:
    """The port of a server that says pong to everything."""
    with empty_server(sorted(os.sched_getaffinity(0))) as port:
        yield port


def test_wrong_answers_are_counted(empty: int, tmp_path: Path) -> None:
    """Each answer is compared with the label of the photo that it is for, and answers and time are counted."""
    requests = [tmp_path / name for name in ("one", "other")]
    for path in requests:
        path.write_bytes(multipart(b"photo" * 50_000))
    job = Job(empty, list(map(str, requests)), ["pong", "ping"], clients=4, seconds=0, at_least=20, at_most=20)
    result = asyncio.run(run(job))
    assert (len(result.milliseconds), result.wrong, result.errors) == (20, 10, {})
    assert 0 < result.cpu_seconds < result.seconds + 1


def test_errors_are_counted(tmp_path: Path) -> None:
    """Where nobody listens every request is an error, and none an answer."""
    (tmp_path / "request").write_bytes(multipart(b"photo"))
    result = asyncio.run(run(Job(free_port(), [str(tmp_path / "request")], ["a"], 2, 0, at_least=4, at_most=4)))
    assert (result.milliseconds, result.errors) == ([], {"ConnectionRefusedError": 4})


@pytest.mark.parametrize(("kind", "megapixels"), [("jpeg", 0.25), ("png", 0.5)])
def test_photos(tmp_path: Path, kind: Any, megapixels: float) -> None:
    """Photos have the pixels that their names say, and are the same each time."""
    (source,) = sources(made_up(tmp_path, each=1), 1)
    content = photo(source, megapixels, kind)
    picture = Image.open(io.BytesIO(content))
    assert picture.format == kind.upper()
    assert picture.width * picture.height == pytest.approx(megapixels * 1e6, rel=0.01)
    assert content == photo(source, megapixels, kind)


def test_the_peers_are_pinned() -> None:
    """What the peers need is pinned, and names no place to get it from."""
    for path in [*PEERS.glob("*.txt"), *PEERS.glob("*/requirements.txt")]:
        lines = path.read_text().splitlines()
        assert lines
        assert all(line.count("==") == 1 and "/" not in line for line in lines), path
    assert {path.parent.name for path in PEERS.glob("*/requirements.txt")} == set(FRAMEWORKS)


def measured(per_second: float, milliseconds: float) -> dict[str, Any]:
    """A round as the contest keeps it."""
    cell = {"per_second": per_second, "errors": {"503": 1}, "cpu_seconds": 1.0, "seconds": 8.0}
    cell |= dict.fromkeys(("p50", "p95", "p99"), milliseconds)
    cells = {f"{size} {clients}": cell for size in ("0.5 jpeg", "12 jpeg", "12 png") for clients in (1, 8)}
    memory = {f"memory_{when}_mb": 10 * milliseconds for when in ("idle", "load", "large")}
    return {"cells": cells, **memory, "first_answer_s": milliseconds / 10, "load": [1.0, 1.0, 1.0]}


@pytest.fixture
def results() -> dict[str, Any]:
    """Ours at 44 answers a second, and two others, of which one did not start in its first round."""
    answers = {"answers": {"answers": 20, "wrong": 3, "errors": {}}}
    rounds = {
        "pigeonhole": [{**measured(rate, 10), "ways": {"fast": 90, "rerun": 10}} for rate in (40, 44, 48)],
        "flask-learner": [{**measured(4, 70), **answers}],
        "fastapi-openvino": [{"not_started": "no answer in 180 seconds.\nlog"}, measured(25, 20)],
    }
    about = {"date": "2026-11-26T10:00", "processor": "P", "flags": [], "system": "S", "python": "3.11", "commit": "c"}
    titles = {"pigeonhole": "Pigeonhole", "flask-learner": "Flask", "fastapi-openvino": "FastAPI"}
    return {
        "about": {**about, "changed": False, "load": [1.0, 1.0, 1.0]},
        "plan": {"rounds": 3, "seconds": 8.0},
        "cores": {"servers": [0, 1], "load": [0, 1]},
        "model": {"says": "The model."},
        "generator": {"per_second": 3000.0, "cpu_seconds": 1.0, "seconds": 2.0},
        "not_installed": ["MLServer"],
        "servers": {key: {"title": title, "installed_mb": 1.0, "rounds": rounds[key]} for key, title in titles.items()},
    }


def test_tables(results: dict[str, Any]) -> None:
    """The tables hold medians and ranges, wrong answers and errors, who did not start, and whether the aims are met."""
    text = report.markdown(results)
    assert "| Pigeonhole | 44.0 (40.0–48.0) |" in text
    assert "| 3 of 20 | 6 |" in text
    assert "- FastAPI: no answer in 180 seconds." in text
    assert "- Pigeonhole: fast 270, exact 0, rerun 30; 10.0 % were computed twice." in text
    assert "## Not installed\n\n- MLServer" in text
    verdicts = [(round(seen, 2), seen >= wanted) for _, seen, wanted in report.ratios(results["servers"])]
    assert verdicts == [(11, True), (1.76, True), (7, True), (3, True), (7, True), (7, True), (7, True)]


def test_an_aim_that_is_missed_is_said(results: dict[str, Any]) -> None:
    """Where a peer comes too close, the table says no."""
    results["servers"]["fastapi-openvino"]["rounds"] = [measured(40, 20)]
    assert "| the same, times the best peer's | 1.10 | at least 1.5 | **no** |" in report.markdown(results)


def test_plots(results: dict[str, Any], tmp_path: Path) -> None:
    """Each plot is there as PNG and as SVG."""
    made = report.plots(results, tmp_path)
    assert {path.suffix for path in made} == {".png", ".svg"}
    assert len(made) == len(set(made)) == 2 * 8
    assert all(path.stat().st_size > 5_000 for path in made)


def test_phases() -> None:
    """A phase that takes more than 1.3 times its floor is marked; what is no phase is HTTP's."""
    floors = {"decode_ms": 8, "resize_ms": 1, "infer_ms": 4, "http_ms": 1, "scale": 4, "decoder": "tjbench"}
    size = {
        "client_mean_ms": 17.0,
        "client_p50_ms": 16.0,
        "phases_ms": {"decode": 10.0, "infer": 6.0},
        "floors": floors,
    }
    assert phases.rows_of(size) == [
        ("decode and resize", 10.0, 9),
        ("infer", 6.0, 4),
        ("all else: HTTP, the form, waiting", 1.0, 1),
    ]
    about = {"date": "2026-11-26", "processor": "P", "load": [1.0]}
    arithmetic = {"operations": 7e9, "float32": 2e11, "bfloat16": 1e12}
    text = phases.markdown({"about": about, "arithmetic": arithmetic, "precision": "bfloat16", "sizes": {"12": size}})
    assert [line.count("**look**") for line in text.splitlines() if "ms |" not in line and "| " in line][-3:] == [
        0,
        1,
        0,
    ]


def test_growth(results: dict[str, Any], tmp_path: Path) -> None:
    """What grows has a table and plots: one row for each step and server."""
    servers = {key: {**one, "steps": [one["rounds"], one["rounds"]]} for key, one in results["servers"].items()}
    steps = [{"place": 1, "name": "1 core"}, {"place": 2, "name": "2 cores"}]
    grown = {"about": results["about"], "kind": "cores", "steps": steps, "servers": servers}
    assert growth.markdown(grown).count("\n| 2 cores | ") == len(servers)
    growth.plot(grown, tmp_path)
    assert len(list(tmp_path.glob("growth-cores-*.svg"))) == 4


@pytest.mark.skipif(not (PEER.environment / DONE).exists(), reason="`make bench` has not installed Flask for OpenVINO")
def test_a_peer(tmp_path: Path, compiled: Callable[[str], Path]) -> None:
    """A peer starts, gives the answers of export.onnx, is watched, and leaves no process behind."""
    export = tmp_path / "plain.pkl"
    shutil.copy(FOLDER / "plain.pkl", export)
    shutil.copy(compiled("plain"), export.with_suffix(".onnx"))
    labels = read_card(export.with_suffix(".onnx")).labels
    export.with_suffix(".labels").write_text("\n".join(labels))
    picture = tmp_path / "photo.png"
    picture.write_bytes(encoded(Image.new("RGB", (200, 200), "red")))
    plan = Plan(rounds=1, seconds=0.2, seconds_of_sizes=0.1, warm_up=0.1, few_clients=(1, 8))
    photos = Photos({USUAL: [picture]}, [picture], {picture: label_of(export, picture)})
    (round_of,) = contest(plan, [PEER], export, photos, lambda _: None, lambda _: None)[PEER.key]
    assert [(cell["wrong"], cell["errors"]) for cell in round_of["cells"].values()] == [(0, {}), (0, {})]
    assert 0 < round_of["memory_idle_mb"] <= round_of["memory_load_mb"]
    assert not [line for line in command_lines() if str(PEER.environment) in line]


def command_lines() -> list[str]:
    """Of all processes of this machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            lines.append(path.read_bytes().decode(errors="replace"))
    return lines


def label_of(export: Path, picture: Path) -> str:
    """What export.onnx says, by the engine of ours."""
    from pigeonhole.model.engine import OpenVINONetwork, openvino_core

    onnx = export.with_suffix(".onnx")
    card = read_card(onnx)
    pixels = np.asarray(Image.open(picture).resize(card.recipe.size or (0, 0)))
    network = OpenVINONetwork(openvino_core().read_model(onnx), "float32", cores=1)
    return card.labels[int(network(pixels).argmax())]


@pytest.mark.parametrize("size", [(400, 533), (711, 400), (101, 64), (64, 64)])
def test_by_hand(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the peers prepare by hand are the pixels that fastai's own transform gives, as our recipe has them."""
    monkeypatch.syspath_prepend(PEERS / "shared")
    from by_hand import resized

    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    assert np.array_equal(np.asarray(resized(picture, 64)), Resize((64, 64)).apply(picture))


def test_open_inference() -> None:
    """MLServer, which takes no forms, gets the photo as base64 in the Open Inference Protocol's JSON."""
    assert open_inference(b"abc").startswith(b"POST /v2/models/classifier/infer HTTP/1.1\r\n")
    assert b'"data": ["YWJj"]' in open_inference(b"abc")


def test_readme_says_what_was_measured() -> None:
    """Every figure of the README's comparison stands in what `make bench` printed."""
    printed = table_under((ROOT / "benchmarks/measured/results.md").read_text(), "## All at once")
    told = table_under((ROOT / "README.md").read_text(), "## How fast")
    assert len(told) > 5
    for server, figures in told.items():
        for name, figure in figures.items():
            assert printed[server][name].split(" (")[0] == figure, (server, name)


def table_under(text: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table behind `heading`: of each row, by its first cell, the cells by the names of their columns."""
    lines = text[text.index(heading) :].split("\n\n|", 1)[1].split("\n\n", 1)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}

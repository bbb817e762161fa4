"""`--true-labels`: accuracy, confusion and calibration, and a report that holds all of it safely."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from pigeonhole.batch.report import MARK, SIDE, About, Mistake, render
from pigeonhole.batch.scores import Judged, Scores, as_table, bins_of, expected_calibration_error, wilson
from tests.batch.conftest import Run, Unexplained, photos, unfinished
from tests.conftest import picture
from tests.web.browser import page_of

ABOUT = About("export.pkl", {"engine": "compiled"}, None, 0, 0)
WHEN = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def judged(*answers: tuple[str, str, float]) -> list[Judged]:
    """From pairs of true and said label, with a probability."""
    return [Judged(f"{number}.jpg", true, said, p) for number, (true, said, p) in enumerate(answers)]


def test_confusion() -> None:
    """Each photo is counted once, under what it is and what was said; an unknown class comes last and is wrong."""
    pairs = [("cat", "cat"), ("cat", "dog"), ("cat", "dog"), ("dog", "dog"), ("bat", "cat")]
    scores = Scores(judged(*((true, said, 0.9) for true, said in pairs)), ("dog", "cat", "owl"))
    assert scores.confusion == {("cat", "cat"): 1, ("cat", "dog"): 2, ("dog", "dog"): 1, ("bat", "cat"): 1}
    assert [(one.label, one.right, one.photos, one.said, one.is_known) for one in scores.classes] == [
        ("dog", 1, 1, 3, True),
        ("cat", 1, 3, 2, True),
        ("bat", 0, 1, 0, False),
    ]
    dog, cat, bat = scores.classes
    assert (dog.recall, dog.precision, cat.recall, cat.precision) == (1, 1 / 3, 1 / 3, 1 / 2)
    assert (bat.recall, bat.precision, scores.accuracy) == (0, None, 2 / 5)
    assert "bat (unknown to the model)" in as_table(scores)


def test_calibration_error() -> None:
    """By hand: bins of 2, 3 and 1 photos, off by 0.35, 0.1 and 0.05: (2 · 0.35 + 3 · 0.1 + 1 · 0.05) / 6 = 0.175."""
    answers = [(0.61, True), (0.69, True), (0.5, True), (0.45, False), (0.35 + 1e-9, False), (0.95, True)]
    answers[4] = (0.4 + 1e-9, False)  # beside 0.5 and 0.45 in the bin from 0.4 on: means 0.45 and 1/3
    error = (2 * 0.35 + 3 * (0.45 - 1 / 3) + 1 * 0.05) / 6
    assert math.isclose(expected_calibration_error(bins_of(answers)), error, abs_tol=1e-8)


@pytest.mark.parametrize(("probability", "place"), [(0.0, 0), (0.1, 0), (0.1000001, 1), (0.5, 4), (1.0, 9)])
def test_edges_of_bins(probability: float, place: int) -> None:
    """A bin reaches from over its lower end up to its upper end, as in the paper; nothing falls out."""
    assert [one.photos for one in bins_of([(probability, True)])] == [int(place == number) for number in range(10)]


@pytest.mark.parametrize(
    ("right", "of", "interval"), [(0, 10, (0, 0.2775)), (10, 10, (0.7225, 1)), (50, 100, (0.4038, 0.5962))]
)
def test_wilson(right: int, of: int, interval: tuple[float, float]) -> None:
    """The interval is the published one, and stays within 0 and 1."""
    assert wilson(right, of) == pytest.approx(interval, abs=1e-4)


def test_true_labels(run: Run) -> None:
    """Folders are classes: what is right of each is printed, and the report says the same."""
    photos(Path("p"), red__1="red", red__2="blue", blue__1="blue", pink__1="red")
    (Path("p") / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = run("p", "-o", "out.csv", "--true-labels")
    assert result.status == 1  # of the broken one
    rows = [line.split() for line in result.out.splitlines()]
    assert rows[1:5] == [
        ["red", "1", "2", "50.0%"],
        ["blue", "1", "1", "100.0%"],
        ["pink", "(unknown", "to", "the", "model)", "0", "1", "0.0%"],
        ["all", "2", "4", "50.0%"],
    ]
    assert "the model knows no label 'pink'; its photos (1) count as wrong." in result.err
    report = Path("report.html").read_text()
    assert re.findall(r'<td class="(\w+)"[^>]*>(\d)</td>', report) == [
        ("right", "1"),
        ("wrong", "1"),
        ("right", "1"),
        ("wrong", "1"),
    ]
    assert "1 more could not be read" in report
    assert report.count("data:image/jpeg;base64,") == 4  # two mistakes, what was seen and the heatmap


def test_rows_for_programs_stay_alone(run: Run) -> None:
    """CSV on standard output is not mixed with the accuracy."""
    photos(Path("p"), red__1="red")
    result = run("p", "--csv", "--true-labels")
    assert result.out == "file,label,probability\r\np/red/1.png,red,1.000000\r\n"
    assert "all" in result.err


def test_a_resumed_report(run: Run) -> None:
    """Photos that were answered before an interruption count like the others."""
    photos(Path("p"), red__1="red", red__2="blue", blue__1="blue")
    unfinished(
        Path("out.csv"), b"file,label,probability\r\np/red/2.png,blue,0.750000\r\np/blue/1.png,blue,1.000000\r\n"
    )
    assert "all        2       3   66.7%" in run("p", "-o", "out.csv", "--true-labels").out
    assert "75.0\N{NO-BREAK SPACE}%</p>" in Path("report.html").read_text().replace(
        ", but it is <strong>red</strong>", ""
    )


def test_without_heatmaps(run: Run) -> None:
    """Of a model that cannot be explained, the report shows photos alone and says why."""
    photos(Path("p"), red__1="blue")
    assert run("p", "--true-labels", engine=Unexplained).status == 0
    report = Path("report.html").read_text()
    assert "cannot be shown: it has no convolutions." in report
    assert report.count("data:image/jpeg;base64,") == 1


def test_the_report_overwrites_reports_only(run: Run) -> None:
    """A report of ours is replaced; anything else stays, and is told before the work begins."""
    photos(Path("p"), red__1="red")
    for _ in range(2):
        assert run("p", "--true-labels", "--report", "r.html").status == 0
    Path("r.html").write_text("<!doctype html>mine")
    refused = run("p", "--true-labels", "--report", "r.html")
    assert (refused.status, refused.out, "no report of ours" in refused.err) == (1, "", True)
    assert Path("r.html").read_text() == "<!doctype html>mine"
    assert run("p", "--true-labels", "--report", "nowhere/r.html").status == 1
    os.mkfifo("pipe")
    assert run("p", "--true-labels", "--report", "pipe").status == 1
    Path("pipe").unlink()
    assert sorted(path.name for path in Path().iterdir()) == ["p", "r.html"]


def test_names_of_folders(run: Run) -> None:
    """A folder whose name is no Unicode, or moves the cursor, is a line of ASCII in the table."""
    for name in (b"\xff", b"x\n\x1b[31m"):
        photos(Path("p") / os.fsdecode(name), a="red")
    result = run("p", "-o", "out.csv", "--true-labels")
    assert result.status == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()[1:3]] == ["x\\n\\x1b[31m", "\\udcff"]
    assert "\x1b" not in result.out + result.err
    assert Path("report.html").exists()


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o027], ids=oct)
def test_the_umask_counts(run: Run, mask: int) -> None:
    """The report holds photos, and heatmaps show them: who may read them is what the umask says."""
    photos(Path("p"), red__1="red")
    before = os.umask(mask)
    try:
        run("p", "--true-labels", "--explain", "heat")
    finally:
        os.umask(before)
    for path in (Path("report.html"), Path("heat/red/1.png.png")):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("arguments", ["-o same.html --csv --report same.html", "-o x.csv --report p/../x.csv"])
def test_the_report_does_not_replace_the_rows(run: Run, arguments: str) -> None:
    """Rows and report in one file are refused before the work begins."""
    photos(Path("p"), red__1="red")
    result = run("p", "--true-labels", *arguments.split())
    assert (result.status, "-o and --report" in result.err) == (2, True)
    assert [path.name for path in Path().iterdir()] == ["p"]


def test_large_mistakes_are_shrunk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a photo for the report is no larger than the report shows it: full ones may take 75 MB each."""
    sizes: list[tuple[int, int]] = []

    def spy(scores: Scores, about: About, mistakes: list[Mistake], when: datetime) -> str:
        sizes.extend(one.picture.size for one in mistakes if one.picture)
        return ""

    monkeypatch.setattr("pigeonhole.batch.report.render", spy)
    Path("p/red").mkdir(parents=True)
    Path("p/red/large.png").write_bytes(picture("blue", (2000, 1000)))
    run("p", "--true-labels", engine=Unexplained)
    assert sizes == [(SIDE, SIDE // 2)]


def test_no_photo_no_report(run: Run) -> None:
    """Where no photo could be read, it is said that an older report is not this run's."""
    photos(Path("p"), red__1="red")
    run("p", "--true-labels")
    Path("p/red/1.png").write_bytes(b"\xff\xd8\xff")
    result = run("p", "--true-labels")
    assert result.status == 1
    assert "no photo was answered, so there is no report; report.html is of an earlier run." in result.err
    Path("report.html").unlink()
    assert "so there is no report.\n" in run("p", "--true-labels").err


NASTY = "<script>alert(1)</script>\"'&\n\udcff{{ 7*7 }}"


def test_names_are_text() -> None:
    """Whatever is in the name of a file, a class or a model is shown as it is, and is no markup."""
    one = Judged(NASTY, NASTY, "said" + NASTY, 0.9)
    scores = Scores([one], ("said" + NASTY,))
    about = About(NASTY, {"engine": "compiled"}, None, 0, 0)
    page = render(scores, about, [Mistake(one, Image.new("RGB", (8, 8)), None)], WHEN)
    page.encode()
    assert "<script" not in page
    shown = "<script>alert(1)</script>\"'&\\n\\udcff{{ 7*7 }}"
    for text in (">{}</dd>", '<p class="file">{}</p>', "<strong>{}</strong>", "<span>said{}</span>"):
        assert text.format(shown) in html.unescape(page), text


def test_many_classes() -> None:
    """Where a matrix would be too large to read, the most frequent mistakes are listed."""
    answers = [(f"class {n % 99}", f"class {(n + n % 2) % 99}", 0.5) for n in range(990)]
    page = render(Scores(judged(*answers), [f"class {n}" for n in range(99)]), ABOUT, [], WHEN)
    assert "the most frequent mistakes" in page
    assert len(page) < 200_000


def test_the_most_confident_mistakes() -> None:
    """Mistakes come by probability, right answers are none of them."""
    answers = judged(("a", "b", 0.5), ("a", "a", 0.99), ("a", "b", 0.9), ("b", "a", 0.7))
    assert [one.probability for one in Scores(answers, ("a", "b")).mistakes(2)] == [0.9, 0.7]


def test_size() -> None:
    """With two dozen of the noisiest pictures it stays below 2 MB."""
    noise = Image.merge("RGB", [Image.effect_noise((600, 400), 90)] * 3)
    answers = judged(*[("a", "b", 0.5)] * 24)
    page = render(Scores(answers, ("a", "b")), ABOUT, [Mistake(one, noise, noise) for one in answers], WHEN)
    assert len(page) < 2_000_000
    assert page.encode()[:512].count(MARK) == 1


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_in_a_browser(tmp_path: Path, width: int) -> None:
    """It asks nobody for anything, fits a phone, and axe finds nothing to object to, light and dark."""
    answers = judged(*[("a", "b", 0.5), ("b", "b", 0.9), ("c", "b", 0.7)] * 10)
    shown = Image.new("RGB", (224, 224), "teal")
    page = render(Scores(answers, ("a", "b")), ABOUT, [Mistake(one, shown, shown) for one in answers[:3]], WHEN)
    (tmp_path / "report.html").write_text(page)
    with served(tmp_path) as address, page_of(f"{address}/report.html", width) as tab:
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert Axe().run(tab).response["violations"] == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

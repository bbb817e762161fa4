"""`python -m pigeonhole predict` over folders: what comes out, in which order, and what is skipped."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest
from PIL import Image

from pigeonhole.batch import command
from pigeonhole.batch.answering import Answering
from pigeonhole.batch.command import Answer
from pigeonhole.batch.finding import Found
from pigeonhole.batch.output import to_file, to_stdout
from pigeonhole.batch.rows import CSV
from pigeonhole.cli import main
from pigeonhole.errors import ModelFault
from pigeonhole.model.predictor import Photo, Prediction
from tests.batch.conftest import COLOURS, Run, Unexplained, answers, photos, unfinished
from tests.conftest import Colours, picture


def test_a_table(run: Run) -> None:
    """By default a photo is a line: its path, its label, the probability."""
    photos(Path("p"), b="red", a="blue")
    result = run("p")
    assert (result.status, result.out) == (0, "p/a.png  blue  100.0 %\np/b.png  red  100.0 %\n")
    assert result.err.startswith("2 photos in ")


def test_one_photo(run: Run) -> None:
    """One photo is no "1 photos"."""
    photos(Path("p"), a="blue")
    assert run("p").err.startswith("1 photo in ")


def test_csv(run: Run) -> None:
    """CSV has a header, and a column pair for each of the most probable labels."""
    photos(Path("p"), a="blue")
    assert run("p", "--csv").out == "file,label,probability\r\np/a.png,blue,1.000000\r\n"
    out = run("p", "--csv", "--top", "2").out
    assert out == "file,label,probability,label_2,probability_2\r\np/a.png,blue,1.000000,red,0.000000\r\n"


def test_json(run: Run) -> None:
    """JSON Lines say what the HTTP API says, under the same names."""
    photos(Path("p"), a="blue", b="red")
    first, second = map(json.loads, run("p", "--json", "--top", "all").out.splitlines())
    assert (first["file"], first["success"], second["success"]) == ("p/a.png", "blue", "red")
    assert [one["label"] for one in first["predictions"]] == ["blue", "red", "green", "grey"]
    assert first["predictions"][0] == {"label": "blue", "probability": 1.0}


class Uneven(Colours):
    """Takes its time with some."""

    def predict(self, photo: Photo) -> Prediction:
        time.sleep(random.choice((0, 0, 0.02)))
        return super().predict(photo)


def test_order(run: Run) -> None:
    """Rows come in the order of the files, whichever thread is done first."""
    photos(Path("p"), **{f"{number:03}": COLOURS[number % 4] for number in range(60)})
    run("p", "-o", "out.csv", engine=Uneven)
    assert answers(Path("out.csv"))[1:] == [
        [f"p/{number:03}.png", COLOURS[number % 4], "1.000000"] for number in range(60)
    ]


def test_order_of_arguments(run: Run) -> None:
    """Files and folders come in the order they are named, a file once, folders sorted with all below them."""
    photos(Path("p"), a="red", z="red", sub__x="red")
    run("p/z.png", "p", "p/a.png", "-o", "out.csv")
    assert [file for file, *_ in answers(Path("out.csv"))[1:]] == ["p/z.png", "p/a.png", "p/sub/x.png"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("broken.jpg", b"\xff\xd8\xff\xe0 and no more", "cannot be decoded"),
        ("empty.jpg", b"", "the file is empty"),
        ("page.png", b"<html>", "the file is not a picture"),
        ("phone.heic", b"\0\0\0\x20ftypheic", "a HEIC picture"),
        ("dangling.jpg", None, "it cannot be read: No such file"),
    ],
)
def test_unreadable(run: Run, name: str, content: bytes | None, sentence: str) -> None:
    """A picture that cannot be read is reported and skipped; the others are answered, and the status is 1."""
    path = photos(Path("p"), a="red", z="blue") / name
    path.symlink_to("nowhere") if content is None else path.write_bytes(content)
    result = run("p", "-o", "out.csv")
    assert result.status == 1
    assert f"p/{name}: " in result.err
    assert sentence in result.err
    assert [file for file, *_ in answers(Path("out.csv"))[1:]] == ["p/a.png", "p/z.png"]


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "._a.png", ".empty", "labels.csv"])
def test_passed_over(run: Run, name: str) -> None:
    """What is clearly no picture is passed over in a folder, and refused where it is named."""
    path = photos(Path("p"), a="red") / name
    path.write_bytes(b"" if name == ".empty" else b"no picture")
    result = run("p")
    assert (result.status, result.out.count("\n")) == (0, 1)
    assert "other files passed over: 1" in result.err
    assert name not in result.err
    assert run("p", path, "-o", "out.csv").status == 0  # it was there as one of the folder's
    assert run(path, "p").status == 1


@pytest.mark.parametrize("name", ["nowhere.jpg", "x" * 300, "p/a.png/b.png"], ids=["missing", "long", "in-a-file"])
def test_named_in_vain(run: Run, name: str) -> None:
    """A name that leads nowhere is told, and the others are answered."""
    photos(Path("p"), a="red")
    result = run(name, "p")
    assert (result.status, result.out.split()) == (1, ["p/a.png", "red", "100.0", "%"])
    assert f"{name}: it cannot be read: " in result.err


def test_special_files(run: Run) -> None:
    """A pipe in a folder is passed over, a named one refused; nobody waits for it to be written to."""
    os.mkfifo(photos(Path("p"), a="red") / "pipe.png")
    assert run("p").status == 0
    assert "p/pipe.png: it is not a file." in run("p/pipe.png").err


def test_links_to_folders(run: Run) -> None:
    """Links to folders are told and not followed, so those that lead round in a circle do not hang; a named one is."""
    (photos(Path("p"), a="red") / "round").symlink_to(".")
    Path("link").symlink_to("p")
    result = run("p")
    assert (result.status, result.out.count("\n")) == (0, 1)
    assert "p/round: a link to a folder is not followed" in result.err
    assert run("link").out == "link/a.png  red  100.0 %\n"


@pytest.mark.parametrize(
    "make", [lambda: Path("p").mkdir(), lambda: (Path("p").mkdir(), Path("p/x.txt").write_text("x"))]
)
def test_nothing_to_do(run: Run, make: Callable[[], object]) -> None:
    """A folder without pictures is an error."""
    make()
    result = run("p")
    assert (result.status, result.out) == (1, "")
    assert "there is no" in result.err


NAMES = [
    b"new\nline.png",
    b'quo"te, comma.png',
    b"\xff\xfe.png",
    b"-o.png",
    b"a;b'c.png",
    b"\r\n.png",
    "ü☃.png".encode(),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_names(run: Run, kind: str) -> None:
    """Names with ends of lines, quotes and bytes that are no Unicode come out as they are, and are found again."""
    Path("p").mkdir()
    for name in NAMES:
        Path(os.fsdecode(b"p/" + name)).write_bytes(picture())
    out = Path(f"out.{kind}")
    assert run("p", "-o", out).status == 0
    files = (
        [row[0] for row in answers(out)[1:]]
        if kind == "csv"
        else [json.loads(line)["file"] for line in out.read_bytes().splitlines()]
    )
    assert sorted(map(os.fsencode, files)) == sorted(b"p/" + name for name in NAMES)
    whole = out.read_bytes()
    unfinished(out, whole[: whole.rindex(b"\n", 0, -1) + 1])
    again = run("p", "-o", out)
    assert f"{len(NAMES) - 1} of {len(NAMES)} files are done already" in again.err
    assert out.read_bytes() == whole


def test_names_in_a_table(run: Run) -> None:
    """In the table a name is one line, and cannot move the cursor."""
    photos(Path("p"), **{"a\n\x1b[2J": "red"})
    assert run("p").out == "p/a\\n\\x1b[2J.png  red  100.0 %\n"


class Faulty(Colours):
    def predict(self, photo: Photo) -> Prediction:
        prediction = super().predict(photo)
        if prediction.success == "green":
            raise ModelFault("the model failed on this picture.")
        return prediction


def test_model_fault(run: Run) -> None:
    """Where the model fails on a picture, it is reported and skipped like one that cannot be read."""
    photos(Path("p"), a="red", b="green", c="blue")
    result = run("p", engine=Faulty)
    assert (result.status, result.out.count("\n")) == (1, 2)
    assert "p/b.png: the model failed on this picture." in result.err


class Several(Colours):
    """A multi-label model; over the threshold are red and grey for red, none for others."""

    def predict(self, photo: Photo) -> Prediction:
        is_red = super().predict(photo).success == "red"
        return Prediction(["red", "grey"] if is_red else [], (0.9, 0.1, 0.2, 0.8) if is_red else (0.1, 0.2, 0.1, 0.1))


def test_multi_label(run: Run) -> None:
    """Labels over the threshold, which may be none, stand apart from the most probable ones; also when read again."""
    photos(Path("p"), a="red", b="blue")
    run("p", "-o", "out.csv", engine=Several)
    whole = "file,success,label,probability\r\np/a.png,red;grey,red,0.900000\r\np/b.png,,green,0.200000\r\n"
    assert Path("out.csv").read_bytes().decode() == whole
    unfinished(Path("out.csv"), whole[:-20].encode())
    run("p", "-o", "out.csv", engine=Several)
    assert Path("out.csv").read_bytes().decode() == whole
    assert json.loads(run("p", "--json", engine=Several).out.splitlines()[0])["success"] == ["red", "grey"]
    assert run("p", engine=Several).out.splitlines()[1] == "p/b.png  (none)  green  20.0 %"
    refused = run("p", "--true-labels", engine=Several)
    assert (refused.status, "one label" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("content", "options", "status"),
    [
        (b"file,label,probability\r\np/a.png,red,1.000000\r\n", {}, 0),
        (b"file,label,probability\r\np/a.png,red,1.000000\r\np/b.png,bl", {}, 0),
        (b"file,label,probability\r\np/a.png,red,1.000000\r", {}, 0),
        (b'file,label,probability\r\np/a.png,red,1.000000\r\n"p/b.png\r\n', {}, 0),
        (b"file,la", {}, 0),
        (b"", {}, 0),
        (b"file,label,probability\r\np/a.png,red\r\n", {}, 1),
        (b"file,label,probability\r\np/a.png,red,much\r\n", {}, 1),
        (b"file,label,probability,label_2,probability_2\r\n", {}, 1),
        (b"file,label,probability\r\n", {"model (engine)": "another"}, 1),
        (b"file,label,probability\r\n", {"model (model_sha256)": "another"}, 1),
        (b"file,label,probability\r\n", {"--top": "2"}, 1),
        (b"file,label,probability\r\n", {"--explain": "/heat"}, 1),
        (b"file,label,probability\r\n", {"ORIENTATION": "as-stored"}, 1),
        (b"file,label,probability\r\n", {"PATH": '["p", "q"]'}, 1),
        (b"file,label,probability\r\n", {"MAX_PIXELS": "1000"}, 1),
    ],
    ids=range(16),
)
def test_resume(run: Run, content: bytes, options: dict[str, str], status: int) -> None:
    """A file is gone on with behind its last whole row, if the same model and options began it; else it stays."""
    photos(Path("p"), a="red", b="blue", c="green")
    unfinished(Path("out.csv"), content, **options)
    result = run("p", "-o", "out.csv")
    assert result.status == status, result.err
    if status:
        assert "not gone on with" in result.err
        assert Path("out.csv").read_bytes() == content
    else:
        assert [row[1] for row in answers(Path("out.csv"))] == ["label", "red", "blue", "green"]
        assert sorted(path.name for path in Path().iterdir()) == ["out.csv", "p"]


@pytest.mark.parametrize("there", ["finished", "folder", "link"])
def test_nothing_is_overwritten(run: Run, there: str) -> None:
    """What is there and is not unfinished is left alone."""
    photos(Path("p"), a="red")
    out = Path("out.csv")
    {"finished": lambda: run("p", "-o", out), "folder": out.mkdir, "link": lambda: out.symlink_to("p")}[there]()
    result = run("p", "-o", out)
    assert (result.status, "is there already" in result.err) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    ["-o x.txt", "-o x.csv --json", "-o x.jsonl --csv", "--csv --json", "--top 0", "--top many", "--report r.html", ""],
)
def test_wrong_command_lines(run: Run, arguments: str) -> None:
    """What contradicts itself is an error of the command line, and nothing is written."""
    photos(Path("p"), a="red")
    assert run(*(["p"] if arguments else []), *arguments.split()).status == 2
    assert [path.name for path in Path().iterdir()] == ["p"]


def test_explain(run: Run) -> None:
    """A heatmap for each photo lies where the photo lies, and is what the model's explanation draws."""
    photos(Path("p"), a="red", sub__b="blue")
    assert run("p", "--explain", "heat").status == 0
    drawn = sorted(str(path) for path in Path("heat").rglob("*") if path.is_file())
    assert drawn == ["heat/a.png.png", "heat/sub/b.png.png"]
    with Image.open(drawn[0]) as heatmap:
        assert (heatmap.format, heatmap.size) == ("PNG", (24, 24))


def test_explain_collides_with_nothing(run: Run) -> None:
    """Files of one name under several arguments, above the folder too, get a heatmap each, all of them inside."""
    for folder in ("one", "two", "../three"):
        photos(Path(folder), **{"x": "red", "X": "blue"})
    (photos(Path("one"), **{"y.png__z": "red"}) / "y").write_bytes(picture())  # y.png would be a file and a folder
    assert run("one", "two", "../three/x.png", "../three", "--explain", "heat").status == 0
    drawn = [path for path in Path("heat").rglob("*") if path.is_file()]
    assert len({str(path).casefold() for path in drawn}) == 8
    assert sorted(path.name for path in Path("..").iterdir()) == ["here", "three", "uploads"]


def test_explain_takes_no_folder_with_something_in_it(run: Run) -> None:
    """Only a run that goes on may find heatmaps there, and its own are no photos to classify."""
    photos(Path("p"), a="red", b="blue")
    photos(Path("heat"), mine="red")
    result = run("p", "--explain", "heat")
    assert (result.status, "heat is not empty" in result.err) == (1, True)
    assert run("p", "--explain", "heat", "-o", "out.csv").status == 1
    assert sorted(path.name for path in Path().iterdir()) == ["heat", "p"]
    row = b"file,label,probability\r\np/a.png,red,1.000000\r\n"
    unfinished(Path("out.csv"), row, **{"PATH": '["."]', "--explain": str(Path("heat").resolve())})
    assert run(".", "--explain", "heat", "-o", "out.csv").status == 0
    assert [file for file, *_ in answers(Path("out.csv"))[1:]] == ["p/a.png", "p/b.png"]
    assert Path("heat/p/b.png.png").exists()
    assert not Path("heat/p/a.png.png").exists()


def test_explain_where_it_cannot(run: Run) -> None:
    """A model that cannot be explained says so before anything is written."""
    photos(Path("p"), a="red")
    result = run("p", "--explain", "heat", "-o", "out.csv", engine=Unexplained)
    assert (result.status, result.err) == (1, "it has no convolutions.\n")
    assert [path.name for path in Path().iterdir()] == ["p"]


def test_explain_long_names(run: Run) -> None:
    """Names that the ending would make too long for a disk are cut, and no two heatmaps share one."""
    photos(Path("p"), **{"x" * 251: "red", "é" * 125 + "y": "red"})
    photos(Path("q"), **{"x" * 251: "red"})
    assert run("p", "q", "--explain", "heat").status == 0
    drawn = [path for path in Path("heat").rglob("*") if path.is_file()]
    assert len(drawn) == 3
    assert all(path.suffix == ".png" for path in drawn)


@pytest.mark.parametrize(
    "arguments",
    [
        "-o heat/a.png.png --csv",
        "-o heat --csv",
        "--true-labels --report heat",
        "--true-labels --report heat/a.png.png",
    ],
)
def test_heatmaps_lie_apart(run: Run, arguments: str) -> None:
    """Rows and report are not put where a heatmap may go."""
    photos(Path("p"), a="red")
    result = run("p", "--explain", "heat", *arguments.split())
    assert (result.status, "--explain" in result.err) == (2, True)
    assert [path.name for path in Path().iterdir()] == ["p"]


def test_rows_in_the_folder_of_heatmaps(run: Run) -> None:
    """Beside heatmaps rows may lie; they are called otherwise."""
    photos(Path("p"), a="red")
    assert run("p", "--explain", "heat", "-o", "heat/out.csv").status == 0
    assert sorted(path.name for path in Path("heat").iterdir()) == ["a.png.png", "out.csv"]


class Together(Colours):
    """Remembers how many photos were in hand at once."""

    now, most, lock = 0, 0, threading.Lock()

    def predict(self, photo: Photo) -> Prediction:
        with self.lock:
            Together.now += 1
            Together.most = max(Together.most, Together.now)
        time.sleep(0.02)
        prediction = super().predict(photo)
        with self.lock:
            Together.now -= 1
        return prediction


def test_an_empty_path(run: Run) -> None:
    """An empty variable of a script does not stand for the whole current folder."""
    photos(Path(), a="red")
    assert (run("").status, run("", "a.png").status) == (2, 2)


def test_max_decoded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more photos are decoded at once than MAX_DECODED says."""
    photos(Path("p"), **{f"{number:02}": "red" for number in range(12)})
    monkeypatch.setenv("MAX_DECODED", "1")
    run("p", engine=Together)
    assert Together.most == 1


class Interrupted(Colours):
    """Ctrl-C comes while it looks at a blue photo."""

    def predict(self, photo: Photo) -> Prediction:
        prediction = super().predict(photo)
        if prediction.success == "blue":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return prediction


def test_stopped_when_all_is_done(run: Run) -> None:
    """Ctrl-C while only the last photos are in hand comes too late to stop anything: it ends like any other run."""
    photos(Path("p"), blue__1="blue")
    result = run("p", "-o", "out.csv", "--true-labels", engine=Interrupted)
    assert (result.status, "stopped" in result.err) == (0, False)
    assert sorted(path.name for path in Path().iterdir()) == ["out.csv", "p", "report.html"]


def test_stopped_without_a_file(run: Run) -> None:
    """Where rows went to standard output, it says how the next run could be resumed."""
    photos(Path("p"), a="blue", **{f"b{number:02}": "red" for number in range(99)})
    result = run("p", engine=Interrupted)
    assert (result.status, "with -o FILE it could be resumed." in result.err) == (130, True)


def test_trouble_elsewhere_is_not_the_files(tmp_path: Path) -> None:
    """Only what happens to the file is said of the file: a broken standard error is none of it."""
    for output in (to_file(tmp_path / "out.csv", CSV(False, 1), {}), to_stdout(CSV(False, 1))):
        with pytest.raises(BrokenPipeError), output:
            raise BrokenPipeError


def test_a_model_of_the_settings_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with MODEL is said of MODEL, which is not on the command line of `predict`."""
    monkeypatch.setenv("MODEL", str(tmp_path / "nowhere.pkl"))
    monkeypatch.chdir(photos(tmp_path, a="red"))
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
    assert main(["predict", "a.png"]) == 1
    assert said[-1].startswith(f"MODEL={tmp_path}/nowhere.pkl is not there")


def test_stopped_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers elsewhere is let go when asked to stop, with what it has in hand, and gone on with later."""
    photos(Path("p"), a="red", b="green", c="blue", d="grey")
    let_go = []

    def elsewhere(answering: Answering, files: Iterable[Found]) -> Generator[tuple[Found, Answer], None, None]:
        todo = list(files)
        try:
            for one in todo:
                if one.name.endswith("c.png") and len(todo) == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield one, answering(one)
        finally:
            let_go.append(len(todo))

    original = command.predict
    monkeypatch.setattr(command, "predict", lambda *arguments: original(*arguments[:3], elsewhere))
    assert run("p", "-o", "x.csv").status == 143
    assert len(answers(Path("x.csv"))) == 1 + 2
    assert run("p", "-o", "x.csv").status == 0
    assert len(answers(Path("x.csv"))) == 1 + 4
    assert let_go == [4, 2]

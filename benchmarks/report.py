"""Tables in Markdown and plots of what was measured; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, rounded

Measured = Mapping[str, Any]
OURS, OBVIOUS = "pigeonhole", "flask-learner"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure_of(rounds: Sequence[Measured], value: Callable[[Measured], float]) -> Figure | None:
    """Over the rounds in which it was measured; None if in none of them."""
    values = []
    for one in rounds:
        try:
            values.append(value(one))
        except KeyError:
            continue
    values = [one for one in values if not math.isnan(one)]
    return Figure.of(values) if values else None


def cell_value(size: str, clients: int, name: str) -> Callable[[Measured], float]:
    return lambda one: one["cells"][f"{size} {clients}"][name]


COLUMNS: dict[str, Callable[[Measured], float]] = {
    "8 clients, answers a second": cell_value("0.5 jpeg", 8, "per_second"),
    "8 clients, p99, ms": cell_value("0.5 jpeg", 8, "p99"),
    "1 client, p50, ms": cell_value("0.5 jpeg", 1, "p50"),
    "12 MP, 1 client, p50, ms": cell_value("12 jpeg", 1, "p50"),
    "first answer, s": lambda one: one["first_answer_s"],
    "memory idle, MB": lambda one: one["memory_idle_mb"],
    "8 clients, MB": lambda one: one["memory_load_mb"],
    "12 MP, MB": lambda one: one["memory_large_mb"],
}


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    servers = results["servers"]
    parts = [
        _about(results),
        "## All at once\n\nMedians over the rounds, and in brackets the least and the greatest. Photos are JPEGs of "
        "0.5 megapixels where no size is named.\n\n" + _overview(servers),
        "## What has to be shown\n\n" + _ratios(servers),
        *_by_clients(servers),
        *_by_sizes(servers),
        "## The load itself\n\n" + _generator(servers, results["generator"]),
    ]
    ways = [_ways(server) for server in servers.values() if any("ways" in one for one in server["rounds"])]
    if ways:
        parts.append("## The way through our engine\n\n" + "\n".join(ways))
    if results["not_installed"]:
        parts.append("## Not installed\n\n" + "\n".join(f"- {title}" for title in results["not_installed"]))
    failed = [
        f"- {server['title']}: {one['not_started'].splitlines()[0]}"
        for server in servers.values()
        for one in server["rounds"]
        if "not_started" in one
    ]
    if failed:
        parts.append("## Not started\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def _about(results: Mapping[str, Any]) -> str:
    about, plan = results["about"], results["plan"]
    loads = [one["load"][0] for server in results["servers"].values() for one in server["rounds"] if "load" in one]
    cores, others = results["cores"]["servers"], results["cores"]["load"]
    return (
        f"# Measured on {about['date'][:10]}\n\n"
        f"{about['processor']} ({', '.join(about['flags'])}), {len(cores)} cores for the servers, "
        f"{'the same ones' if cores == others else 'others'} for what asks them; "
        f"{about['system']}, Python {about['python']}, commit {about['commit'][:12]}"
        f"{' with changes' if about['changed'] else ''}. {plan['rounds']} rounds, {plan['seconds']:g} seconds a cell. "
        f"Load average before the servers were started: {rounded(min(loads, default=0))} to "
        f"{rounded(max(loads, default=0))} (what is over 1 to 2 is others at work)."
        f"\n\n{results['model']['says']}"
    )


def _overview(servers: Mapping[str, Any]) -> str:
    rows = []
    for server in servers.values():
        cells = [_text(figure_of(server["rounds"], value)) for value in COLUMNS.values()]
        rows.append([server["title"], *cells, _text(server["installed_mb"]), _wrong(server), str(_errors(server))])
    return table(["server", *COLUMNS, "installed, MB", "wrong answers", "errors"], rows)


def _wrong(server: Measured) -> str:
    """Of the photos that were compared; a photo that is asked about again counts once."""
    compared = [one["answers"] for one in server["rounds"] if "answers" in one]
    return f"{compared[0]['wrong']} of {compared[0]['answers']}" if compared else "–"


def _ways(server: Measured) -> str:
    """How many photos were computed twice, because the fast way was not sure of them."""
    counted = [one["ways"] for one in server["rounds"] if "ways" in one]
    total = {way: sum(one.get(way, 0) for one in counted) for way in ("fast", "exact", "rerun")}
    share = 100 * total["rerun"] / max(1, sum(total.values()))
    numbers = ", ".join(f"{way} {count:.0f}" for way, count in total.items())
    return f"- {server['title']}: {numbers}; {rounded(share)} % were computed twice."


def _errors(server: Measured) -> int:
    cells = [cell for one in server["rounds"] for cell in (*one.get("cells", {}).values(), one.get("answers", {}))]
    return sum(sum(cell.get("errors", {}).values()) for cell in cells)


def ratios(servers: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What issue 9 asks for: in words, what was measured, and what it has to be at least."""

    def median(key: str, column: str) -> float:
        figure = figure_of(servers[key]["rounds"], COLUMNS[column]) if key in servers else None
        return figure.median if figure else math.nan

    def over(column: str, key: str = OBVIOUS) -> float:
        return median(key, column) / median(OURS, column)

    rate, one, large = "8 clients, answers a second", "1 client, p50, ms", "12 MP, 1 client, p50, ms"
    peers = [median(key, rate) for key in servers if not key.startswith(OURS)]
    best = max((value for value in peers if not math.isnan(value)), default=math.nan)
    p50 = figure_of(servers[OURS]["rounds"], cell_value("0.5 jpeg", 8, "p50")) if OURS in servers else None
    return [
        ("answers a second of 8 clients, times the obvious app's", 1 / over(rate), 10),
        ("the same, times the best peer's", median(OURS, rate) / best, 1.5),
        ("one client's p50 of the obvious app, times ours", over(one), 6),
        ("p50 of 8 clients, times three, by their p99", 3 * p50.median / median(OURS, "8 clients, p99, ms"), 1)
        if p50
        else ("p50 of 8 clients, times three, by their p99", math.nan, 1),
        ("12 MP: one client's p50 of the obvious app, times ours", over(large), 6),
        ("memory of the obvious app at 8 clients, times ours", over("8 clients, MB"), 2),
        ("first answer of the obvious app, times ours", over("first answer, s"), 4),
    ]


def _ratios(servers: Mapping[str, Any]) -> str:
    rows = [
        [name, rounded(seen), f"at least {wanted:g}", "" if math.isnan(seen) else "yes" if seen >= wanted else "**no**"]
        for name, seen, wanted in ratios(servers)
    ]
    return table(["what", "measured", "has to be", "is"], rows)


def _sizes(servers: Mapping[str, Any]) -> list[str]:
    """`0.5 jpeg` and so on, in order."""
    names = {key.rpartition(" ")[0] for key in _cells(servers)}
    return sorted(names, key=lambda name: (name.split()[1], float(name.split()[0])))


def _clients(servers: Mapping[str, Any], size: str) -> list[int]:
    return sorted(int(key.rpartition(" ")[2]) for key in _cells(servers) if key.rpartition(" ")[0] == size)


def _cells(servers: Mapping[str, Any]) -> set[str]:
    return {key for server in servers.values() for one in server["rounds"] for key in one.get("cells", ())}


def _row(server: Measured, cells: Iterable[tuple[str, int]], name: str) -> list[str]:
    """The server's title, and the figure called `name` of each cell."""
    rounds = server["rounds"]
    return [server["title"], *(_text(figure_of(rounds, cell_value(size, n, name))) for size, n in cells)]


def _by_clients(servers: Mapping[str, Any]) -> list[str]:
    clients = _clients(servers, "0.5 jpeg")
    titles = {"per_second": "Answers a second", "p50": "p50, ms", "p95": "p95, ms", "p99": "p99, ms"}
    return [
        f"## {title}, by clients\n\n"
        + table(
            ["server", *map(str, clients)],
            [_row(server, [("0.5 jpeg", n) for n in clients], name) for server in servers.values()],
        )
        for name, title in titles.items()
    ]


def _by_sizes(servers: Mapping[str, Any]) -> list[str]:
    sizes = _sizes(servers)
    wanted = {(1, "p50"): "One client's p50, ms", (8, "per_second"): "Answers a second of 8 clients"}
    return [
        f"## {title}, by size in megapixels\n\n"
        + table(["server", *sizes], [_row(server, [(size, n) for size in sizes], name) for server in servers.values()])
        for (n, name), title in wanted.items()
    ]


def _generator(servers: Mapping[str, Any], ceiling: Measured) -> str:
    shares = [
        (cell["cpu_seconds"] / cell["seconds"], server["title"], name)
        for server in servers.values()
        for one in server["rounds"]
        for name, cell in one.get("cells", {}).items()
    ]
    if not shares:
        return "None."
    most = max(shares)
    share = ceiling["cpu_seconds"] / ceiling["seconds"]
    usual = [share for share, _, name in shares if name == "0.5 jpeg 8"]
    return (
        "What asks the servers computed, as a share of one core: at 8 clients with 0.5 megapixels "
        f"{rounded(100 * min(usual, default=0))} to {rounded(100 * max(usual, default=0))} %; at most "
        f"{rounded(100 * most[0])} % ({most[1]}, {most[2]} clients). Where it shares the cores with the servers, the "
        f"fastest server loses the most by it. Of a server that does nothing it gets {rounded(ceiling['per_second'])} "
        f"answers a second, and computes {rounded(100 * share)} % of a core."
    )


def _text(value: Figure | float | None) -> str:
    return "–" if value is None else rounded(value) if isinstance(value, float) else str(value)


def plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """As PNG and SVG."""
    servers = results["servers"]
    clients = _clients(servers, "0.5 jpeg")
    made = []
    for name, title, scale in (
        ("per_second", "answers a second, JPEGs of 0.5 megapixels", "linear"),
        ("p50", "p50 in ms, JPEGs of 0.5 megapixels", "log"),
        ("p99", "p99 in ms, JPEGs of 0.5 megapixels", "log"),
    ):
        lines = {
            server["title"]: [figure_of(server["rounds"], cell_value("0.5 jpeg", n, name)) for n in clients]
            for server in servers.values()
        }
        made += line_plot(folder / f"clients-{name}", clients, lines, "clients", title, scale)
    for kind in ("jpeg", "png"):
        sizes = [size for size in _sizes(servers) if size.endswith(kind)]
        if sizes:
            lines = {
                server["title"]: [figure_of(server["rounds"], cell_value(size, 1, "p50")) for size in sizes]
                for server in servers.values()
            }
            megapixels = [float(size.split()[0]) for size in sizes]
            title = f"one client's p50 in ms, {kind.upper()}"
            made += line_plot(folder / f"megapixels-{kind}", megapixels, lines, "megapixels", title, "log")
    for name, column in (
        ("memory", "8 clients, MB"),
        ("start", "first answer, s"),
        ("rate", "8 clients, answers a second"),
    ):
        bars = {server["title"]: figure_of(server["rounds"], COLUMNS[column]) for server in servers.values()}
        made += bar_plot(folder / name, bars, column)
    return made


def line_plot(
    path: Path,
    along: Sequence[float],
    lines: Mapping[str, Sequence[Figure | None]],
    x: str,
    y: str,
    scale: str = "linear",
    along_scale: str = "log",
) -> list[Path]:
    """Medians as lines, with the range of the rounds as a band."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    for number, (title, values) in enumerate(lines.items()):
        seen = [(place, value) for place, value in zip(along, values, strict=True) if value]
        if not seen:
            continue
        places, figures = zip(*seen, strict=True)
        style = {"linewidth": 3.0, "zorder": 3} if title.startswith("Pigeonhole") else {"linewidth": 1.2}
        dashes = ("-", "--", ":", "-.")[number // 10 % 4]
        (line,) = axes.plot(places, [f.median for f in figures], dashes, marker="o", markersize=3, label=title, **style)
        axes.fill_between(
            places, [f.low for f in figures], [f.high for f in figures], color=line.get_color(), alpha=0.12, linewidth=0
        )
    if along_scale == "log":
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(along), [f"{round(place, 2):,g}" for place in along])
        axes.minorticks_off()
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0, top=1.05 * axes.get_ylim()[1])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return _saved(figure, path)


def bar_plot(path: Path, bars: Mapping[str, Figure | None], x: str) -> list[Path]:
    pyplot = _pyplot()
    seen = [(title, value) for title, value in bars.items() if value]
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.35 * max(1, len(seen))), layout="constrained")
    for title, value in reversed(seen):
        colour = "tab:blue" if title.startswith("Pigeonhole") else "tab:gray"
        errors = [[value.median - value.low], [value.high - value.median]]
        axes.barh(title, value.median, xerr=errors, color=colour, height=0.7)
    axes.set_xlabel(x)
    axes.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = []
    for suffix, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        made.append(path.with_suffix(f".{suffix}"))
        figure.savefig(made[-1], **options)
    _pyplot().close(figure)
    return made


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

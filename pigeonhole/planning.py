"""`python -m pigeonhole plan`: with which settings the service, measured here with its model, fits a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pigeonhole.errors import NotMeasured, SettingsError, TooLittleMemory
from pigeonhole.machine import usable_cores
from pigeonhole.measuring import Service, on_cores, photos, serving
from pigeonhole.settings import MIB, Settings
from pigeonhole.sizing import FILES, JPEG, TURNED, WEBP, Box, Room, Shape, divide

THREADS_A_CORE = 4  # with 2 a third fewer photos were answered, with 8 as many
LAST_WAITS = 5  # seconds, in a full queue; Heroku's router gives up after 30, people earlier
LEAST_WAITING = 8
MOST_WAITING = 1000
WORTH_A_WORKER = 1.1  # times as many photos as without it
CLIENTS = 8
WARM, SECONDS, ALONE = 1.0, 4.0, 15  # seconds of load before measuring, seconds and requests measured
SMALL, LARGE = (800, 600), (4000, 3000)  # pixels: what the page sends, about, and what a phone takes
MILLION = 1_000_000


@dataclass(frozen=True)
class Measured:
    """Times in seconds; `large` and `large_per_second` are None where such a photo is refused; memory in bytes."""

    small: float
    large: float | None
    small_per_second: float
    large_per_second: float | None
    memory: int


@dataclass(frozen=True)
class Plan:
    """What fits `box`; `passed_over` says, for each number of workers tried and not taken, why."""

    box: Box
    shape: Shape
    room: Room
    measured: Measured
    most_pixels: int
    passed_over: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, int]:
        """By their names in the environment."""
        waiting = round(self.measured.small_per_second * LAST_WAITS / self.shape.workers)
        return {
            "WORKERS": self.shape.workers,
            "THREADS": self.shape.threads,
            "MAX_DECODED": self.room.decoding,
            "MAX_WAITING": max(LEAST_WAITING, min(waiting, MOST_WAITING)),
            "MAX_PIXELS": min(self.most_pixels, _rounded_down(self.room.pixels())),
        }

    def __str__(self) -> str:
        """A file of environment variables, with the reasons as comments."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return "\n".join([*settings, *(f"# {line}" for line in (*self._reasons(), *self.passed_over))])

    def _reasons(self) -> Iterator[str]:
        room, measured = self.room, self.measured
        jpeg, turned, webp = (_megapixels(room.pixels(a_pixel)) for a_pixel in (JPEG, TURNED, WEBP))
        each = " in each worker" if self.shape.workers > 1 else ""
        yield f"{_mb(self.box.memory)} MB and {_cores(self.box.cores)}: {_mb(room.held)} MB are held anyway."
        yield (
            f"{_mb(room.pictures)} MB{each} are left for pictures: a JPEG of {jpeg} megapixels, of {turned} where it "
            f"has to be turned, a WebP of {webp}."
        )
        where = "in memory" if self.shape.bodies_in_memory else "on a disk"
        yield f"Bodies lie {where} (UPLOADS); {_mb(room.bodies)} MB of them{each} may be there at once."
        yield (
            f"With {CLIENTS} clients: {_rates(measured.small_per_second, measured.large_per_second)}; "
            f"{_mb(measured.memory)} MB of memory then."
        )
        yield f"With one client: {_times(measured.small, measured.large)}."


def plan(box: Box, settings: Settings, tell: Callable[[str], object] = lambda step: None) -> Plan:
    """The settings for `box`; what they leave open is taken from `settings`.

    The service is started here for each number of workers, with made-up photos as its load: some 20 seconds each.

    Raises:
        SettingsError: there are not so many cores here.
        TooLittleMemory: the model does not fit.
        NotMeasured: the service does not start here.
    """
    if box.cores > usable_cores():
        raise SettingsError(f"{_cores(usable_cores())} can be used here, so --cores={box.cores} cannot be measured.")
    passed_over: list[str] = []
    best: Plan | None = None
    with on_cores(box.cores):
        for workers in _numbers_of_workers(box.cores):
            tell(f"measuring with {workers} worker{'s' if workers > 1 else ''} ...")
            try:
                one = _with_workers(workers, box, settings)
            except TooLittleMemory as error:
                if best is None:
                    raise
                passed_over.append(f"WORKERS={workers} does not fit: {error}")
                break
            rate = one.measured.small_per_second
            if best and rate < WORTH_A_WORKER * best.measured.small_per_second:
                held = f"and hold {_mb(one.room.held)} MB"
                passed_over.append(f"WORKERS={workers} would answer {rate:.0f} photos a second, {held}.")
            else:
                best = one
    assert best is not None
    return replace(best, passed_over=tuple(passed_over))


def _numbers_of_workers(cores: int) -> Iterator[int]:
    workers = 1
    while workers <= cores:
        yield workers
        workers *= 2


def _with_workers(workers: int, box: Box, settings: Settings) -> Plan:
    threads = -(-THREADS_A_CORE * box.cores // workers)
    shape = replace(Shape.of(settings), workers=workers, threads=threads)
    chosen = {"WORKERS": str(workers), "THREADS": str(threads)}
    try:
        with serving(**chosen, MEMORY=str(box.memory // MIB)) as service:
            room = divide(box, service.held(), shape)
            return _measured_plan(service, box, shape, room, settings)
    except NotMeasured:
        with serving(**chosen) as service:  # where there is more memory, to know how much it takes
            divide(box, service.held(), shape)
        raise


def _measured_plan(service: Service, box: Box, shape: Shape, room: Room, settings: Settings) -> Plan:
    most = min(settings.max_pixels, room.pixels())
    return Plan(box, shape, room, _measured(service, has_large=most >= LARGE[0] * LARGE[1]), settings.max_pixels)


def _measured(service: Service, has_large: bool) -> Measured:
    small, large = photos(SMALL), photos(LARGE) if has_large else []
    service.per_second(small, CLIENTS, WARM)
    return Measured(
        small=service.seconds(small, ALONE),
        large=service.seconds(large, ALONE) if has_large else None,
        small_per_second=service.per_second(small, CLIENTS, SECONDS),
        large_per_second=service.per_second(large, CLIENTS, SECONDS) if has_large else None,
        memory=service.memory() + FILES,
    )


def _rounded_down(pixels: int) -> int:
    step = MILLION if pixels > 10 * MILLION else MILLION // 10
    return pixels // step * step


def _megapixels(pixels: int) -> str:
    return f"{pixels / MILLION:.0f}" if pixels > 10 * MILLION else f"{pixels / MILLION:.1f}"


def _rates(small: float, large: float | None) -> str:
    rate = f"{small:.0f} photos of {SMALL[0]}x{SMALL[1]} a second"
    return rate if large is None else f"{rate}, {large:.0f} of {LARGE[0]}x{LARGE[1]}"


def _times(small: float, large: float | None) -> str:
    time = f"{small * 1000:.0f} ms"
    return time if large is None else f"{time}, and {large * 1000:.0f} ms"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _mb(size: int) -> int:
    return round(size / MIB)

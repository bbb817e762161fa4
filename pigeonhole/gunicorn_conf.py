"""How gunicorn runs the service: `gunicorn -c python:pigeonhole.gunicorn_conf app:app`.

The master only looks at the settings, the folder and the model file, and lets other processes download the model and
compile it if that is due. Each worker loads the model after the fork, before its first request, because the threads of
torch and of OpenVINO do not survive a fork.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from gunicorn.errors import HaltServer

from pigeonhole.errors import DownloadError, PigeonholeError, SettingsError
from pigeonhole.intake.formats import load_decoders
from pigeonhole.intake.uploads import prepare
from pigeonhole.machine import killed_for_memory, usable_memory
from pigeonhole.model.choosing import check_model, compile_if_stale
from pigeonhole.model.store.addresses import is_address
from pigeonhole.server.worker import is_app
from pigeonhole.settings import MIB, Settings
from pigeonhole.sizing import Box, Shape, check_memory
from pigeonhole.web import tracing
from pigeonhole.web.keys import keys_of
from pigeonhole.web.log_lines import JSONLine
from pigeonhole.web.page_examples import examples_of
from pigeonhole.web.ready import prepare_process
from pigeonhole.wiring import model_of

SHARED_MEMORY = "/dev/shm"  # in a read-only container the one folder that can be written to, beside UPLOADS
WORKER_BOOT_ERROR = 3  # gunicorn's own number: the master stops instead of trying again for ever

while os.open(os.devnull, os.O_RDWR) < 3:  # where standard error is closed, an upload would be opened in its place
    pass


def _say(sentence: str, to: TextIO | None = None) -> None:
    """To standard output; where that is full or nobody reads it any more, the service does without."""
    with suppress(OSError):
        print(sentence, file=to, flush=True)


def _refuse(error: PigeonholeError, status: int) -> NoReturn:
    _say(f"Pigeonhole does not start.\n{error}", sys.stderr)
    sys.exit(status)


try:
    settings = Settings.load()
except SettingsError as error:
    _refuse(error, 1)

loaded = mmap.mmap(-1, 1)  # shared with the workers: whether one of them has ever loaded the model
killed_before = killed_for_memory()

host = f"[{settings.host}]" if ":" in settings.host else settings.host  # an IPv6 address
bind = f"{host}:{settings.port}"
workers = settings.workers
threads = settings.threads
worker_class = "pigeonhole.server.worker.PatientWorker"
worker_connections = settings.max_connections
timeout = 120  # seconds a worker may take to load its model; afterwards its heart beats whatever the threads do
graceful_timeout = 25  # seconds to finish what is in hand; Heroku kills after 30
keepalive = 5
worker_tmp_dir = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None  # the heart beats there, not on a disk
sendfile = False  # what is answered is sent by the event loop
control_socket_disable = True
accesslog = None  # our own line, one a request, of pigeonhole.web.log_lines
loglevel = "error"  # its warnings of malformed requests quote what was sent, and that may be a photo
forwarder_headers = ""  # no client may say under which path the service lies
secure_scheme_headers: dict[str, str] = {}  # nor that it was asked by https; who may, TRUSTED_PROXIES says


def on_starting(server: Any) -> None:
    """In the master, before anything listens."""
    global settings
    try:
        prepare(settings.uploads)
        load_decoders(settings.formats)
        examples_of(settings)
        tracing.check(settings.traces_endpoint)
        keys_of(settings)
        with _stoppable():
            if is_address(settings.model):
                settings = settings.with_model(_downloaded())
            model = model_of(settings)
            check_model(model)
            compile_if_stale(model, _say)
            check_memory(Box.here(settings.memory), model.file.stat().st_size, Shape.of(settings))
    except PigeonholeError as error:
        _refuse(error, 1)
    for handler in server.log.error_log.handlers:  # what gunicorn has to say from here on
        handler.setFormatter(JSONLine())


def post_worker_init(worker: Any) -> None:
    """In each worker, before its first request."""
    if not is_app(worker.wsgi):
        return
    try:
        engine = prepare_process(worker.wsgi)
    except PigeonholeError as error:
        first = worker.age <= settings.workers  # a later one that fails must not take the others down
        _refuse(error, WORKER_BOOT_ERROR if first else 1)
    loaded[0] = True
    if worker.age == 1:  # the first one speaks for all
        _say_how_to_try(len(engine.labels))


def child_exit(server: Any, worker: Any) -> None:
    """In the master, after a worker has ended: where it was for want of memory, another one would meet the same end."""
    if not loaded[0] and killed_for_memory() > killed_before and server.LISTENERS:  # which it has until it stops
        _say(
            f"Pigeonhole does not start.\n{usable_memory() // MIB} MB of memory are too little to load the model.",
            sys.stderr,
        )
        raise HaltServer("Worker failed to boot.", WORKER_BOOT_ERROR)


def worker_exit(server: Any, worker: Any) -> None:
    """In each worker, after its last request."""
    if is_app(worker.wsgi):  # it may have failed to load
        worker.wsgi.extensions["traces"].close()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the start quietly, with the process it waits for; gunicorn does not listen yet."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        signal.signal(signal.SIGTERM, before)


def _downloaded() -> Path:
    """Where the model lies that MODEL is the address of, once another process has brought it.

    What downloads has threads, which do not survive a fork. The address stays in the environment: it may be signed, and
    everybody can read a command line.
    """
    command = [sys.executable, "-m", "pigeonhole", "download"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise DownloadError("MODEL was not downloaded; the reason stands above.")
    return Path(done.stdout.removesuffix("\n"))


def _say_how_to_try(labels: int) -> None:
    here = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host
    address = f"http://{here}:{settings.port}"
    _say(
        f"Pigeonhole serves {model_of(settings).file} ({labels} labels) at {address}\n"
        f"Try it {'there in a browser, or' if settings.page else 'with'}:  curl -F image=@photo.jpg {address}/predict"
    )

"""Other packages' errors, in our words.

They quote addresses and headers. So ours are raised `from None`: a log that shows causes would show signatures, too.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pigeonhole.errors import DownloadError, PackagesMissing, PigeonholeError, Unreachable
from pigeonhole.model.store.addresses import shown

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INSTALL = "`tools/environment.sh .venv store` installs it"
MLFLOW_TRACKING = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, say who asks"
CREDENTIALS = {
    "https": "no credentials are sent to it; a signed address works",
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, say who asks",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS says who asks",
    "hf": "HF_TOKEN says who asks, also for what is private or gated",
    "runs": MLFLOW_TRACKING,
    "models": MLFLOW_TRACKING,
}
LOGGERS = (
    "asyncio",
    "aiobotocore",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "huggingface_hub",
    "mlflow",
    "s3fs",
    "urllib3",
)
LATER = (408, 425, 429)  # statuses of servers that want to be asked again
NOT_ALLOWED = {
    "PermissionError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError",
}  # fmt: skip
NETWORK = ("aiohttp", "botocore", "aiobotocore", "httpx2", "httpcore2", "requests", "urllib3")
REASONS = {
    socket.gaierror: "its name is not known",
    ssl.SSLCertVerificationError: "its certificate is not trusted",
    ConnectionRefusedError: "nobody answers there",
    TimeoutError: "it takes too long to answer",
}


class NoRanges(Exception):
    """The server answers with the whole file when it is asked for a part."""


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn other packages' errors into ours."""
    try:
        yield
    except (PigeonholeError, NoRanges):
        raise
    except ImportError as error:
        name = next(
            (cause.name for cause in _chain(error) if isinstance(cause, ImportError) and cause.name), "a package"
        )
        raise PackagesMissing(f"MODEL={shown(address)} needs {name}, which is not installed; {INSTALL}.") from None
    except Exception as error:
        raise _explained(list(_chain(error)), address) from None


@contextmanager
def muted() -> Iterator[None]:
    """Keep other packages from logging: they quote whole addresses."""
    levels = {logger: logger.level for logger in map(logging.getLogger, LOGGERS)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _explained(errors: Sequence[BaseException], address: str) -> DownloadError:
    """What happened, in our words: of `errors`, each was raised because of the next."""
    for error in errors:
        if isinstance(error, DownloadError):  # of ours, on its way through theirs
            return error
    here = f"MODEL={shown(address)}"
    status = next(filter(None, map(_status, errors)), None)
    if reason := _why_unreachable(errors, status):
        return Unreachable(f"{here} cannot be reached: {reason}.")
    return DownloadError(f"{here} {_why_refused(errors, status, address.partition(':')[0])}.")


def _why_unreachable(errors: Sequence[BaseException], status: int | None) -> str | None:
    for error in errors:
        for kind, reason in REASONS.items():
            if isinstance(error, kind):
                return reason
    if status is not None:
        return f"the answer has status {status}" if status >= 500 or status in LATER else None
    network = any(isinstance(error, ConnectionError) or _package(error) in NETWORK for error in errors)
    if network and not any(type(error).__name__ in NOT_ALLOWED for error in errors):
        return f"the connection broke ({type(errors[-1]).__name__})"
    return None


def _why_refused(errors: Sequence[BaseException], status: int | None, scheme: str) -> str:
    kinds = {type(error).__name__ for error in errors}
    full = [error for error in errors if isinstance(error, OSError) and error.errno in NO_ROOM]
    if full:
        return f"cannot be kept in MODEL_CACHE: {full[0].strerror}"
    if status in (401, 403) or kinds & NOT_ALLOWED or str(errors[0]).startswith("Forbidden"):  # the last is gcsfs's
        return f"may not be read, or is not there; {CREDENTIALS.get(scheme, CREDENTIALS['https'])}"
    if status in (404, 410) or (status is None and "FileNotFoundError" in kinds):
        return "is not there"
    if scheme == "models" and "alias" in str(errors[0]):  # its status is 400
        return "is not there: the model has no such alias"
    return f"is refused with status {status}" if status else f"cannot be downloaded ({type(errors[-1]).__name__})"


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of any of the packages."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    asked = getattr(error, "get_http_status_code", lambda: None)  # MLflow's
    code = getattr(error, "code", None) if _package(error) == "gcsfs" else None  # aiohttp's is not what the server said
    for status in (getattr(error, "status", None), code, response, asked()):
        number = getattr(status, "status_code", status)
        if isinstance(number, int) and 400 <= number < 600:
            return number
    return None

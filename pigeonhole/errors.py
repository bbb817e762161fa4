"""Everything that can go wrong, each with its HTTP status, its stable code and one sentence for a person.

    PigeonholeError
    ├── RequestError                    what a client sent
    │   ├── NoImage                     400 no_image
    │   ├── EmptyImage                  400 empty_image
    │   ├── BadMultipart                400 bad_multipart
    │   ├── IncompleteBody              400 incomplete_body
    │   ├── BadJSON                     400 bad_json
    │   ├── BadBase64                   400 bad_base64
    │   ├── BadURL                      400 bad_url
    │   ├── BadParameter                400 bad_parameter
    │   ├── BadRequest                  400 bad_request
    │   ├── BadHost                     400 bad_host
    │   ├── NoKey                       401 no_key
    │   ├── BadKey                      403 bad_key
    │   ├── URLOff                      403 url_off
    │   ├── UnknownModel                404 unknown_model
    │   ├── SlowUpload                  408 slow_upload
    │   ├── TooLarge                    413 too_large
    │   ├── TooManyFiles                413 too_many_files
    │   ├── URLTooLong                  414 url_too_long
    │   ├── NotAnImage                  415 not_an_image
    │   ├── UnsupportedType             415 unsupported_type
    │   ├── BadContentType              415 bad_content_type
    │   ├── BadContentEncoding          415 bad_content_encoding
    │   ├── BadExpectation              417 bad_expectation
    │   ├── TooManyPixels               422 too_many_pixels
    │   ├── BrokenImage                 422 broken_image
    │   ├── URLNotAllowed               422 url_not_allowed
    │   ├── URLFailed                   422 url_failed
    │   ├── RateLimited                 429 rate_limited: Retry-After
    │   ├── HeadTooLarge                431 head_too_large
    │   └── NotAvailable                501 not_available
    ├── ServiceError                    our own trouble, worth another try: Retry-After
    │   ├── NotReady                    503 not_ready
    │   ├── Overloaded                  503 overloaded
    │   ├── NoSpace                     503 no_space
    │   └── ModelFault                  503 model_fault
    └── StartError                      the service does not start; the sentence goes to the terminal
        ├── SettingsError
        ├── TooLittleMemory
        ├── NotMeasured
        ├── FolderError
        ├── PackagesMissing
        ├── DownloadError
        │   └── Unreachable
        ├── ModelFileError
        ├── CompiledFileError
        ├── NotCompiled
        ├── ClusterError
        └── TrainingError

A sentence says what was seen and what is allowed. One that a client gets holds no path of the server, no traceback and
no other library's words; those stay in `__cause__`, for the log.
"""

from __future__ import annotations

from collections.abc import Mapping


class PigeonholeError(Exception):
    """The root: `str(error)` is the sentence."""


class RequestError(PigeonholeError):
    """The client can mend it; trying the same again gives the same answer. `headers` go with the answer."""

    status = 400
    code: str
    headers: Mapping[str, str] = {}  # noqa: RUF012


class NoImage(RequestError):
    code = "no_image"


class EmptyImage(RequestError):
    code = "empty_image"


class BadMultipart(RequestError):
    code = "bad_multipart"


class IncompleteBody(RequestError):
    code = "incomplete_body"


class BadJSON(RequestError):
    code = "bad_json"


class BadBase64(RequestError):
    code = "bad_base64"


class BadURL(RequestError):
    code = "bad_url"


class BadParameter(RequestError):
    code = "bad_parameter"


class BadRequest(RequestError):
    """It is no well-formed HTTP."""

    code = "bad_request"


class BadHost(RequestError):
    code = "bad_host"


class NoKey(RequestError):
    status = 401
    code = "no_key"
    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012


class BadKey(RequestError):
    status = 403
    code = "bad_key"


class URLOff(RequestError):
    status = 403
    code = "url_off"


class UnknownModel(RequestError):
    status = 404
    code = "unknown_model"


class SlowUpload(RequestError):
    status = 408
    code = "slow_upload"


class TooLarge(RequestError):
    status = 413
    code = "too_large"


class TooManyFiles(RequestError):
    status = 413
    code = "too_many_files"


class URLTooLong(RequestError):
    status = 414
    code = "url_too_long"


class NotAnImage(RequestError):
    status = 415
    code = "not_an_image"


class UnsupportedType(RequestError):
    status = 415
    code = "unsupported_type"


class BadContentType(RequestError):
    status = 415
    code = "bad_content_type"


class BadContentEncoding(RequestError):
    status = 415
    code = "bad_content_encoding"


class BadExpectation(RequestError):
    status = 417
    code = "bad_expectation"


class TooManyPixels(RequestError):
    status = 422
    code = "too_many_pixels"


class BrokenImage(RequestError):
    status = 422
    code = "broken_image"


class URLNotAllowed(RequestError):
    status = 422
    code = "url_not_allowed"


class URLFailed(RequestError):
    status = 422
    code = "url_failed"


class RateLimited(RequestError):
    """The exception among them: the same works again after `retry_after` seconds."""

    status = 429
    code = "rate_limited"

    def __init__(self, sentence: str, retry_after: int) -> None:
        super().__init__(sentence)
        self.headers = {"Retry-After": str(retry_after)}


class HeadTooLarge(RequestError):
    status = 431
    code = "head_too_large"


class NotAvailable(RequestError):
    status = 501
    code = "not_available"


class ServiceError(PigeonholeError):
    """The client did nothing wrong; `retry_after` is in seconds."""

    status = 503
    code = "service_error"
    retry_after = 5


OUR_FAULT = "something went wrong here, not with your request; please try again."  # of what nobody foresaw


class NotReady(ServiceError):
    code = "not_ready"


class Overloaded(ServiceError):
    code = "overloaded"


class NoSpace(ServiceError):
    code = "no_space"


class ModelFault(ServiceError):
    code = "model_fault"


class StartError(PigeonholeError):
    """Nothing is served; whoever starts the service reads the sentence."""


class SettingsError(StartError):
    pass


class TooLittleMemory(StartError):
    pass


class NotMeasured(StartError):
    pass


class FolderError(StartError):
    pass


class PackagesMissing(StartError):
    pass


class DownloadError(StartError):
    pass


class Unreachable(DownloadError):
    """Another try may work."""


class ModelFileError(StartError):
    pass


class CompiledFileError(StartError):
    pass


class NotCompiled(StartError):
    pass


class ClusterError(StartError):
    pass


class TrainingError(StartError):
    pass

"""Who may call: under which names, with which keys, how often, and from which pages of other origins."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from flask import Flask, Response, g, request
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import host_is_trusted

from pigeonhole.errors import BadHost, RateLimited
from pigeonhole.settings import Settings
from pigeonhole.web.api import API
from pigeonhole.web.headers import ONLY_HTTPS
from pigeonhole.web.keys import Keys
from pigeonhole.web.page import FORM
from pigeonhole.web.rates import Rates, Standing
from pigeonhole.web.tensors import HEADER_LENGTH

METHODS = ["GET", "HEAD", "POST"]
# beside those that pages may always read
READABLE = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "X-Request-ID", HEADER_LENGTH]
DAY = 86_400  # seconds that a browser may remember the answer to its question
PROBES = ("/ping", "/ready", "/v2/health/live", "/v2/health/ready")  # what orchestrators ask by IP address
# RFC 3986, but for what no name holds: a comma between two Hosts would be part of one
HOST = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?")
IPV6_OF_ONE = 64  # bits; a customer has at least so many addresses
UNKNOWN = "unknown"


def install(api: API, settings: Settings, keys: Keys | None) -> None:
    """Let in who may call; all routes of `api` have to be there."""
    app = api.app
    proxies = settings.trusted_proxies
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=0)  # type: ignore[method-assign]
    door = _Door(
        settings.hosts,
        keys,
        Rates(settings.rate_limit, settings.rate_limit_storage) if settings.rate_limit else None,
        needing_key=frozenset(one.endpoint for one in api.operations if one.needs_key),
        taking_pictures=frozenset(one.endpoint for one in api.operations if one.takes_pictures) | {FORM},
    )
    app.before_request(door.admit)
    app.after_request(_finish)
    _share(app, settings.origins)


@dataclass(frozen=True)
class _Door:
    """Looks at the head of each request, before its body is read; `needing_key` and so on are Flask's endpoints."""

    hosts: frozenset[str]
    keys: Keys | None
    rates: Rates | None
    needing_key: frozenset[str]
    taking_pictures: frozenset[str]

    def admit(self) -> None:
        """Let the request pass; `g.key_name` is then the client's name, if it has one.

        Raises:
            BadHost, RateLimited, NoKey, BadKey: as they say.
        """
        _check_host(self.hosts)
        endpoint = request.endpoint or ""
        if request.method == "OPTIONS" or endpoint not in self.needing_key | self.taking_pictures:
            return
        secret = _secret()
        if self.keys and secret and (name := self.keys.name_of(secret)):
            g.key_name = name
        is_a_try = bool(self.keys) and endpoint in self.needing_key and "key_name" not in g
        if self.rates and (endpoint in self.taking_pictures or is_a_try):  # so that nobody tries keys by the thousand
            _count(self.rates)
        if self.keys and endpoint in self.needing_key and "key_name" not in g:
            g.key_name = self.keys.check(secret)


def _check_host(hosts: frozenset[str]) -> None:
    host = request.headers.get("Host")
    if host is None and request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0" and not hosts:
        return
    if host is None or not HOST.fullmatch(host):
        raise BadHost("the request has no Host, or one that is not a name or an address with a port.")
    if hosts and request.path not in PROBES and not host_is_trusted(host.lower(), hosts):
        raise BadHost("the service is not called by this name.")


def _secret() -> str | None:
    """What the client sent as its key."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else request.headers.get("X-API-Key")


def _count(rates: Rates) -> None:
    g.standing = standing = rates.count(f"key {g.key_name}" if "key_name" in g else f"address {_address()}")
    if not standing.is_within:
        sentence = f"too many requests: {standing.rule} are taken; try again in {standing.reset_in} s."
        raise RateLimited(sentence, standing.reset_in)


def _address() -> str:
    """The client's, or the network that an IPv6 address stands for."""
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:  # a Unix socket, or what a proxy wrote; counted together
        return UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), IPV6_OF_ONE), strict=False))


def _finish(response: Response) -> Response:
    standing: Standing | None = g.get("standing")
    response.headers.update(standing.headers if standing else {})
    if request.method == "OPTIONS" and response.status_code == 200:
        response.status_code = 204  # Flask's has an empty body, which it calls HTML
        response.headers.pop("Content-Type")
    if request.is_secure:
        response.headers.update(ONLY_HTTPS)
    return response


def _share(app: Flask, origins: frozenset[str]) -> None:
    """Let pages of `origins` read the answers; `*` is all of them, and nothing is no one."""
    if origins:
        CORS(
            app,
            origins="*" if "*" in origins else sorted(origins),
            send_wildcard=True,
            always_send=False,
            methods=METHODS,
            expose_headers=READABLE,
            max_age=DAY,
        )

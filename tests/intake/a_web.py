"""A web of its own on this machine: a name server, servers that do what they are told, certificates."""

from __future__ import annotations

import datetime
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import dns.resolver
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dnslib import QTYPE, RCODE, RR, DNSRecord

from pigeonhole.intake.addresses import IPAddress
from pigeonhole.intake.fetch import Fetcher, resolver_of

PUBLIC = "93.184.215.14"  # a public address; what is dialled there ends at a server of ours
ALSO_PUBLIC = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
ZONE = f"photos.example.com. 60 A {PUBLIC}"
PATIENCE = 5  # seconds after which a thread of ours gives up, so that no test hangs

Script = bytes | Callable[[socket.socket], None]


class Names:
    """A name server that answers the nth asking of a question from its nth zone, then from its last."""

    def __init__(self, *zones: str, code: str = "NOERROR", cut: bool = False) -> None:
        self.asked: list[tuple[str, str]] = []
        self._zones = [RR.fromZone(zone) for zone in zones]
        self._code, self._cut = code, cut
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self._socket.getsockname()[1]
        self.resolve = resolver_of(resolver)

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
            bell.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            if self._code:  # else it never says a word
                self._socket.sendto(self._answer(DNSRecord.parse(query)).pack(), client)

    def _answer(self, query: Any) -> Any:
        question = (str(query.q.qname).rstrip("."), QTYPE[query.q.qtype])
        zone = self._zones[min(self.asked.count(question), len(self._zones) - 1)]
        self.asked.append(question)
        reply, name = query.reply(), query.q.qname
        reply.header.rcode = getattr(RCODE, self._code)
        reply.header.tc = int(self._cut)
        if not any(record.rname == name for record in zone):
            reply.header.rcode = RCODE.NXDOMAIN
        for _ in zone:  # long enough for any chain
            records = [rr for rr in zone if rr.rname == name and rr.rtype in (query.q.qtype, QTYPE.CNAME)]
            reply.add_answer(*records)
            name = records[-1].rdata.label if records and records[-1].rtype == QTYPE.CNAME else None
        return reply


class Site:
    """A server whose nth connection goes by its nth script, then by its last; bytes are an answer to a request."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []  # of the requests
        self.names: list[str | None] = []  # by SNI
        self.hung_up = threading.Event()  # a script found its client gone
        self._scripts, self._tls = scripts, tls
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._running = bool(scripts)  # without a script, connections are taken by the kernel and by nobody else
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running = False
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        count = 0
        while self._running:
            client, _ = self._listener.accept()
            if self._running:
                client.settimeout(PATIENCE)
                self._play(client, self._scripts[min(count, len(self._scripts) - 1)])
                count += 1
            client.close()

    def _play(self, client: socket.socket, script: Script) -> None:
        try:
            if self._tls:
                client = self._tls.wrap_socket(client, server_side=True)
            with client:
                self.heads.append(head_from(client))
                if callable(script):
                    script(client)
                else:
                    client.sendall(script)
        except OSError:
            self.hung_up.set()


class Web:
    """Names, sites, and a fetcher that dials a site of ours for a public address of theirs."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self.dialled: list[tuple[str, int]] = []
        self.given: list[float] = []  # seconds for each
        self._trust = trust
        self._sites: dict[tuple[str, int], Site] = {}
        self._servers: list[Site | Names] = []
        self.names = self.named(ZONE)

    def named(self, *zones: str, **trouble: Any) -> Names:
        """Have names answered like this from now on."""
        self.names = Names(*zones, **trouble)
        self._servers.append(self.names)
        return self.names

    def site(self, *scripts: Script, at: str = PUBLIC, port: int = 80, tls: ssl.SSLContext | None = None) -> Site:
        """Have it there from now on."""
        self._sites[at, port] = Site(*scripts, tls=tls)
        self._servers.append(self._sites[at, port])
        return self._sites[at, port]

    def fetcher(self, limit: int = 100_000, at_once: int = 4, seconds: float = 5, **options: Any) -> Fetcher:
        seams: dict[str, Any] = {"resolve": self.names.resolve, "connect": self.connect, "trust": self._trust}
        return Fetcher(limit, at_once, seconds=seconds, **seams | options)

    def fetch(self, url: str, **options: Any) -> bytes:
        into = io.BytesIO()
        self.fetcher(**options).fetch(url, into)
        return into.getvalue()

    def connect(self, address: IPAddress, port: int, seconds: float) -> socket.socket:
        self.dialled.append((str(address), port))
        self.given.append(seconds)
        if (str(address), port) not in self._sites:
            raise ConnectionRefusedError("nobody is there")
        return socket.create_connection(("127.0.0.1", self._sites[str(address), port].port), seconds)

    def __enter__(self) -> Web:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._servers:
            server.stop()


class Certificates:
    """An authority of our own, and what it signs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for tests")])
        self._own = self._signed(self._key.public_key(), self._name, (), days=9, authority=True)
        self.trust = ssl.create_default_context(cadata=self._own.public_bytes(serialization.Encoding.PEM).decode())

    def server(self, *names: str, days: int = 9, signed: bool = True) -> ssl.SSLContext:
        """What a server needs to call itself `names` until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._signed(key.public_key(), subject, names, days, by=self._key if signed else key)
        file = self._folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _signed(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        names: Sequence[str],
        days: int,
        by: ec.EllipticCurvePrivateKey | None = None,
        authority: bool = False,
    ) -> x509.Certificate:
        signer, now = by or self._key, datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name if signer is self._key else subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=99))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(signer, hashes.SHA256())


def head_from(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := client.recv(4096)):
            raise ConnectionAbortedError
        head += more
    return head


def ok(body: bytes, *headers: str) -> bytes:
    return answer("200 OK", f"Content-Length: {len(body)}", *headers) + body


def answer(status: str, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode()


def redirect(to: str, status: int = 302) -> bytes:
    return answer(f"{status} Elsewhere", f"Location: {to}", "Content-Length: 0", "Set-Cookie: canary=1")


def flood(start: bytes, again: bytes) -> Callable[[socket.socket], None]:
    """`start`, then `again` as fast as the client takes it, for as long as it does."""

    def script(client: socket.socket) -> None:
        client.sendall(start)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            client.sendall(again)

    return script


def drip(start: bytes, again: bytes) -> Callable[[socket.socket], None]:
    """`start`, then `again` twenty times a second."""

    def script(client: socket.socket) -> None:
        client.sendall(start)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            client.sendall(again)
            time.sleep(0.05)

    return script


def hang(client: socket.socket) -> None:
    """Say nothing until the client goes."""
    if not client.recv(1):
        raise ConnectionAbortedError

"""What the environment says of the network: proxies and root certificates, for every HTTP library.

The libraries disagree. Of `NO_PROXY`, some ignore CIDR blocks, others ports, and httpx fails for an
IPv6 address; boto3 does not know `SSL_CERT_FILE`. So each of them is given the answers of this
module.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from archiver.core.errors import UsageError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_WITH_PORT = re.compile(r"([^:]+|\[.*\]):(\d{1,5})")
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_merged: list[Any] = []
"""Temporary files. Each is deleted when the process ends."""


def check() -> None:
    """Raise `UsageError` if a proxy's URL is malformed, or a file of roots cannot be read."""
    for scheme in _DEFAULT_PORTS:
        proxy_for(f"{scheme}://example.com")
    openssl_bundle()


# --- proxies


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy for a request to `url`; None to send it directly.

    `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`, also in lower case, name proxies. `NO_PROXY` lists
    exceptions, comma separated: `*`, a host name (with the names below it), an address, a CIDR
    block, each also with `:port`. Raises `UsageError` if a proxy's URL is malformed.
    """
    variable = proxy_variable(url)
    if variable is None:
        return None
    return _checked(variable, getproxies()[variable.removesuffix("_PROXY").lower()])


def proxy_variable(url: str) -> str | None:
    """Return the name of the variable that has the proxy for a request to `url`, in upper case;
    None if there is no proxy."""
    parts, proxies = urlsplit(url), getproxies()
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    if not proxies.get(scheme):
        return None
    host, port = (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme)
    exceptions = proxies.get("no", "").lower().split(",")
    if any(_is_exception(one.strip(), host, port) for one in exceptions):
        return None
    return f"{scheme.upper()}_PROXY"


def _is_exception(exception: str, host: str, port: int | None) -> bool:
    """Whether an entry of `NO_PROXY` covers a host (an IPv6 address without brackets) and port."""
    if match := _WITH_PORT.fullmatch(exception):
        return int(match[2]) == port and _is_exception(match[1], host, port)
    if exception == "*":
        return True
    with suppress(ValueError):
        network = ipaddress.ip_network(exception.strip("[]"), strict=False)
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False  # a name is never resolved for this
    domain = exception.removeprefix("*").strip(".")
    return bool(domain) and f".{host}".endswith(f".{domain}")


def _checked(variable: str, proxy: str) -> str:
    """Return a proxy's URL, with `http://` if it has no scheme."""
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(url)
        if parts.scheme in _DEFAULT_PORTS and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    # The value is not shown: it may have a password.
    raise UsageError(f"{variable}: takes a URL such as http://proxy.example.com:3128")


# --- root certificates


def root_bundle(aws_bundle: str | None = None) -> Path | None:
    """Return the PEM file of root certificates that a client has to be told of; None if it finds
    them by itself: those of `openssl_bundle`, or the system's.

    The first that is set counts: `aws_bundle`, which is boto3's setting, for the store only;
    `SSL_CERT_FILE` and `SSL_CERT_DIR`; `REQUESTS_CA_BUNDLE`. Raises `UsageError` if no certificate
    can be read there.
    """
    if aws_bundle:
        return _bundle("AWS_CA_BUNDLE", aws_bundle)
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if openssl_bundle() is None and bundle:
        return _bundle("REQUESTS_CA_BUNDLE", bundle)
    return None


def openssl_bundle() -> Path | None:
    """Return the certificates of `SSL_CERT_FILE` and `SSL_CERT_DIR` as one file; None if neither is
    set. Raises `UsageError` as `root_bundle` does."""
    file, directories = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not directories:
        return _bundle("SSL_CERT_FILE", file) if file else None
    places = directories.split(os.pathsep)
    if not file:
        return _bundle("SSL_CERT_DIR", *places)
    # The file counts by itself: that a directory has certificates must not hide that it has none.
    return _bundle("SSL_CERT_DIR", str(_bundle("SSL_CERT_FILE", file)), *places)


def boto3_bundle(aws_bundle: str | None = None) -> Path | None:
    """Return the same roots for boto3, which finds none by itself; None for those that it brings
    along, where the system has no file of them. Raises `UsageError` as `root_bundle` does."""
    system = Path(ssl.get_default_verify_paths().openssl_cafile)
    found = root_bundle(aws_bundle) or openssl_bundle()
    return found or (system if system.is_file() else None)


@cache
def _bundle(variable: str, *places: str) -> Path:
    """The certificates in files and directories, as one file; a merged one is temporary."""
    paths: list[Path] = []
    for place in map(Path, places):
        with suppress(PermissionError):
            paths += sorted(place.iterdir()) if place.is_dir() else [place]
    found: dict[str, None] = {}  # a directory may have a certificate under several names
    used = []
    for path in paths:
        with suppress(OSError):
            if there := _CERTIFICATE.findall(path.read_text("ascii", "ignore")):
                found |= dict.fromkeys(there)
                used.append(path)
    pem = "\n".join(found)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        where = os.pathsep.join(places)
        raise UsageError(f"{variable}: no certificate (PEM) can be read from {where}") from None
    if len(used) == 1:
        return used[0]
    try:
        merged = tempfile.NamedTemporaryFile("w", prefix="roots-", suffix=".pem")  # noqa: SIM115
        merged.write(pem)
        merged.flush()
    except OSError as error:
        text = f"TMPDIR: the certificates of {variable} cannot be written ({error.strerror})"
        raise UsageError(text) from None
    _merged.append(merged)
    return Path(merged.name)

"""TLS client contexts: for the API and the recordings the system's roots, nothing weaker.

OpenSSL reads `SSL_CERT_FILE` and `SSL_CERT_DIR`, which is how a private root is brought in.
"""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path


@cache
def client_context() -> ssl.SSLContext:
    """TLS 1.2 or newer, certificate and host name verified. Safe to share among threads."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def trusting(roots: Path) -> ssl.SSLContext:
    """The same, with the roots of a file or a directory in the place of the system's. Raises
    `OSError`."""
    is_directory = roots.is_dir()
    context = ssl.create_default_context(
        cafile=None if is_directory else str(roots), capath=str(roots) if is_directory else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context

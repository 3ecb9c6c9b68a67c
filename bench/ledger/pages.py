"""`python -m bench.ledger.pages PORT CALLS`: S3's listing of a day with so many records.

Answers ListObjectsV2 below any prefix, 1,000 keys a page, and nothing else: to put a million
records into a real store would take longer than all of the bench.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from archiver.manifest import layout
from bench.ledger import material

PAGE = 1000


class Pages(BaseHTTPRequestHandler):
    """The token of a page is the number of the first record on it."""

    protocol_version = "HTTP/1.1"
    calls = 0

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        body = _page(int(asked.get("continuation-token", ["0"])[0]), self.calls).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _page(first: int, calls: int) -> str:
    end = min(first + PAGE, calls)
    more = "true" if end < calls else "false"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bench</Name><KeyCount>{end - first}</KeyCount><IsTruncated>{more}</IsTruncated>"
        f"<NextContinuationToken>{end}</NextContinuationToken>"
        f"{''.join(_items(first, end))}</ListBucketResult>"
    )


def _items(first: int, end: int) -> Iterator[str]:
    """As S3 writes them; the keys in order."""
    for number in range(first, end):
        key = layout.record_key(material.START.date(), call_id(number), 1)
        yield (
            f"<Contents><Key>{key}</Key><LastModified>2024-01-15T10:07:12.000Z</LastModified>"
            "<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>1540</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


def call_id(number: int) -> str:
    return f"vc_{number:012d}"


def main() -> None:
    port, Pages.calls = int(sys.argv[1]), int(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", port), Pages).serve_forever()


if __name__ == "__main__":
    main()

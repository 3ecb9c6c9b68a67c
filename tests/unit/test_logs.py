"""Logs never hold a URL's query, a token or a signature, whoever logs."""

from __future__ import annotations

import json
import logging
import time

import pytest
import structlog
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from archiver.observability import logs

SECRET = "s3cr3tvalue"
URL = f"https://recs.example.com/recs/vc_1.wav?sv=2024&se=2030&sig={SECRET}%3D"


@pytest.mark.parametrize(
    "text",
    [
        URL,
        f"GET {URL} failed",
        f"'{URL}'",
        f'<a href="{URL}">',
        f"/recs/vc_1.wav?sig={SECRET}",
        f"HTTP GET /api/x?token={SECRET} 200",
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer   {SECRET}",
        f"sig={SECRET}&x=1",
        f"Signature={SECRET}",
        f"key ak_live_{SECRET}",
    ],
)
def test_redaction(text):
    assert SECRET not in logs.redact(text)


def test_redaction_leaves_the_rest():
    assert logs.redact("call vc_1: what? 5 % of /a/b") == "call vc_1: what? 5 % of /a/b"
    assert logs.redact(f"GET {URL} failed") == "GET https://recs.example.com/recs/vc_1.wav?… failed"


@given(st.text(max_size=200))
def test_redaction_takes_any_text(text):
    logs.redact(text)


@pytest.mark.parametrize("text", ["/" * 500_000, "a" * 500_000, "?" * 500_000, "bearer " * 50_000])
def test_redaction_is_linear(text):
    began = time.process_time()
    logs.redact(text)
    assert time.process_time() - began < 2


@pytest.mark.usefixtures("restored_logs")
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_on_any_way_into_the_log(form, capfd):
    logs.configure("debug", form)
    log = structlog.get_logger()
    failed = urllib3.exceptions.LocationParseError(URL)
    log.info("fetched", url=URL, nested={"url": [URL]}, error=failed)
    log.warning(f"text {URL}")
    logging.getLogger("some.library").warning("asked %s", URL)
    for name in ("urllib3.connectionpool", "botocore.endpoint", "some.client"):
        logging.getLogger(name).info("GET %s", URL)
        logging.getLogger(name).error("failed: %s", URL)
    try:
        raise urllib3.exceptions.HTTPError(f"cannot reach {URL}")
    except urllib3.exceptions.HTTPError:
        log.exception("caught")
        logging.getLogger("some.library").exception("caught too")
    written = capfd.readouterr().err
    assert written.count("\n") > 5
    assert SECRET not in written


@pytest.mark.usefixtures("restored_logs")
def test_a_line_is_one_json_object(capfd):
    logs.configure("info", "json")
    with structlog.contextvars.bound_contextvars(call_id="a\nb\u2028c"):
        structlog.get_logger().info("call.archived", bytes=5)
    structlog.get_logger().debug("not this")
    logging.getLogger("library").warning("two\nlines")
    *lines, end = capfd.readouterr().err.split("\n")
    assert (len(lines), end) == (2, ""), "one line each"
    first = json.loads(lines[0])
    assert json.loads(lines[1])["event"] == "two\nlines"
    assert first["event"] == "call.archived"
    assert first["call_id"] == "a\nb\u2028c"
    assert first["level"] == "info"
    assert first["at"].endswith("Z")

"""A page of a listing, and what is none."""

from __future__ import annotations

import pytest

from archiver.store.signed_requests import parse_page, query_of

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult{namespace}><Name>b</Name><Prefix>x</Prefix><KeyCount>2</KeyCount>
<MaxKeys>1000</MaxKeys>{encoding}<IsTruncated>{more}</IsTruncated>{token}
<Contents><Key>{key}</Key><LastModified>2024-01-15T10:00:00Z</LastModified><Size>5</Size>
<Owner><ID>o</ID></Owner></Contents>
<Contents><Size>6</Size><Key>b</Key></Contents></ListBucketResult>"""


def page(key: str = "a", namespace: str = "", encoding: str = "", more: str = "") -> bytes:
    token = "<NextContinuationToken>t&amp;1</NextContinuationToken>" if more == "true" else ""
    return PAGE.format(
        key=key, namespace=namespace, encoding=encoding, more=more, token=token
    ).encode()


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
@pytest.mark.parametrize("more", ["", "false"])
def test_the_last_page(namespace, more):
    assert parse_page(page(namespace=namespace, more=more)) == {
        "Name": "b",
        "IsTruncated": False,
        "Contents": [
            {"Key": "a", "Size": 5, "LastModified": "2024-01-15T10:00:00Z"},
            {"Key": "b", "Size": 6, "LastModified": None},
        ],
    }


def test_one_that_goes_on():
    found = parse_page(page(more="true"))
    assert (found["IsTruncated"], found["NextContinuationToken"]) == (True, "t&1")


def test_keys_are_decoded_where_they_are_encoded():
    url = "<EncodingType>url</EncodingType>"
    assert parse_page(page("a%2Fb%20c+d", encoding=url))["Contents"][0]["Key"] == "a/b c d"
    assert parse_page(page("a%2Fb%20c+d &amp;"))["Contents"][0]["Key"] == "a%2Fb%20c+d &"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        page().replace(b"<Size>6</Size>", b""),
        page().replace(b">5<", b">five<"),
        b"<html></html>",
        b"{}",
        b"<ListBucketResult>",
        page()[:-30],
        b"\xff\xfe",
        b"<Error/>",
    ],
)
def test_what_is_no_page_is_empty(body):
    assert parse_page(body) == {}


def test_folders_are_decoded_too():
    url = "<EncodingType>url</EncodingType>"
    text = "<CommonPrefixes><Prefix>a%2Fdt%3D1%2F</Prefix></CommonPrefixes></ListBucketResult>"
    body = page(encoding=url).replace(b"</ListBucketResult>", text.encode())
    assert parse_page(body)["CommonPrefixes"] == [{"Prefix": "a/dt=1/"}]
    assert query_of({"Delimiter": "/"}) == "delimiter=%2F&encoding-type=url&list-type=2"


def test_what_is_asked():
    asked = {"Bucket": "b", "StartAfter": "é/=", "Prefix": "a b&c", "ContinuationToken": "+"}
    assert query_of(asked) == (
        "continuation-token=%2B&encoding-type=url&list-type=2&prefix=a%20b%26c"
        "&start-after=%C3%A9%2F%3D"
    )

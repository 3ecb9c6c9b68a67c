"""A page of ListObjectsV2: its query, and the few fields of its XML that an archive needs.

botocore takes ten times as long for the same page: it parses the XML twice, and parses the dates,
which stay text here.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

_PARAMETERS = {
    "ContinuationToken": "continuation-token",
    "Delimiter": "delimiter",
    "MaxKeys": "max-keys",
    "Prefix": "prefix",
    "StartAfter": "start-after",
}


def query_of(arguments: dict[str, Any]) -> str:
    """The query for boto3's `arguments`, with its parameters sorted by name. Keys are requested
    URL-encoded, because XML cannot represent some characters."""
    asked = {_PARAMETERS[name]: str(arguments[name]) for name in _PARAMETERS if name in arguments}
    asked |= {"encoding-type": "url", "list-type": "2"}
    return "&".join(f"{name}={quote(asked[name], safe='')}" for name in sorted(asked))


def parse_page(body: bytes) -> dict[str, Any]:
    """Parse a page into boto3's names: `Name`, `IsTruncated`, `NextContinuationToken`, `Contents`
    (`Key`, `Size`, `LastModified`) and `CommonPrefixes` (`Prefix`). Empty if it is not such a page.
    """
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  (expat bounds what entities may grow to)
        return _page(root) if _local_name(root) == "ListBucketResult" else {}
    except (ElementTree.ParseError, KeyError, ValueError):
        return {}


def _page(root: ElementTree.Element) -> dict[str, Any]:
    fields: dict[str, str] = {}
    contents: list[dict[str, Any]] = []
    prefixes: list[dict[str, Any]] = []
    for child in root:
        name = _local_name(child)
        if name == "Contents":
            item = {_local_name(part): part.text or "" for part in child}
            size, modified = int(item["Size"]), item.get("LastModified")
            contents.append({"Key": item["Key"], "Size": size, "LastModified": modified})
        elif name == "CommonPrefixes":
            prefixes += [{"Prefix": part.text or ""} for part in child]
        else:
            fields[name] = child.text or ""
    if fields.get("EncodingType") == "url":
        for found, key in [(one, "Key") for one in contents] + [
            (one, "Prefix") for one in prefixes
        ]:
            found[key] = unquote_plus(found[key])
    page: dict[str, Any] = {"Contents": contents, "Name": fields.get("Name", "")}
    if prefixes:
        page["CommonPrefixes"] = prefixes
    page["IsTruncated"] = fields.get("IsTruncated") == "true"
    if token := fields.get("NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _local_name(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]

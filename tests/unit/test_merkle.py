"""RFC 6962: against its recursive definition, written down again here, and known answers."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.manifest import merkle

# The reference inputs of Certificate Transparency's own tests (google/certificate-transparency,
# merkletree/merkle_tree_test.cc), with the root after each further leaf.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + definition(leaves[:k]) + definition(leaves[k:])).digest()


@pytest.mark.parametrize("count", range(1, 9))
def test_known_answers(count):
    root, size = merkle.root_and_size(CT_LEAVES[:count])
    assert (root.hex(), size) == (CT_ROOTS[count - 1], count)


@pytest.mark.parametrize("block", [1, 2, 8, merkle.BLOCK])
def test_each_size_is_as_defined(block, monkeypatch):
    monkeypatch.setattr(merkle, "BLOCK", block)
    for count in range(70):
        leaves = [str(number).encode() for number in range(count)]
        assert merkle.root_and_size(leaves) == (definition(leaves), count)


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_any_leaves_are_as_defined(leaves):
    assert merkle.root_and_size(iter(leaves)) == (definition(leaves), len(leaves))

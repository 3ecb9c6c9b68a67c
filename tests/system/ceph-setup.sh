#!/usr/bin/env bash
# Installs what tests/system/ceph.py starts: Debian's Ceph, about 100 packages. Nothing of it is
# started here. Running it again is cheap.
set -euo pipefail

missing=
for command in monmaptool ceph-mon ceph ceph-osd radosgw-admin radosgw; do
  command -v "$command" >/dev/null || missing=$command
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "error: $missing is missing: install Ceph" >&2; exit 1; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  ceph-base ceph-mon ceph-osd radosgw >/dev/null

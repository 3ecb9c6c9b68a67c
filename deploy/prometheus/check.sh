#!/usr/bin/env bash
# Checks the alerts' form, and runs their tests.
# usage: check.sh; needs promtool (make system-setup brings it)
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PATH:$(cd ../.. && pwd)/.cache/bin
command -v promtool >/dev/null || { echo "error: promtool is missing: make system-setup" >&2; exit 1; }
promtool check rules --lint=all --lint-fatal alerts.yaml
promtool test rules alerts_test.yaml

#!/usr/bin/env bash
# Builds each kustomization and checks what comes out against the schemas of Kubernetes.
# usage: check.sh [KUBERNETES_VERSION]; needs kubectl and kubernetes-validate (make venv has both)
set -euo pipefail
cd "$(dirname "$0")"
PATH=$(cd ../.. && pwd)/.venv/bin:$PATH
version=${1:-1.32}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
for part in config base backfill; do
  kubectl kustomize "$part" >"$built/$part.yaml"
  kubernetes-validate -k "$version" --strict "$built/$part.yaml" | sed "s|$built/||"
done

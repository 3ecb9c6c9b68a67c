#!/usr/bin/env bash
# Builds the Dockerfile for real and checks what came out, with no image registry: a stand-in for the
# base image, of the same name and with Debian's own Python, is put together from packages. With
# PULL=1 the real base image is pulled instead. Needs root, podman, buildah, runc and mmdebstrap;
# Debian's packages are installed where they are missing. Images stay in .cache/podman: later runs
# are fast.
set -euo pipefail
cd "$(dirname "$0")/.."

base=docker.io/library/python:3.12-slim
image=localhost/call-recording-archiver:check
store=$PWD/.cache/podman
authorities=/etc/ssl/certs/ca-certificates.crt

main() {
  install_tools
  private_store
  podman image exists "$base" || get_base
  build
  check_contents
  check_front_door
  echo "the image builds, holds no build tools, and runs with a read-only root as user 10001"
}

install_tools() {
  local tool
  for tool in podman buildah runc mmdebstrap; do
    command -v "$tool" >/dev/null && continue
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      podman buildah runc catatonit netavark mmdebstrap >/dev/null
    return
  done
}

private_store() { # a store and settings of our own: the machine's other containers stay as they are
  mkdir -p "$store"
  export CONTAINERS_STORAGE_CONF=$store/storage.conf CONTAINERS_CONF=$store/containers.conf
  local files
  files=$(ulimit -Hn)
  if [ "$files" = unlimited ] || [ "$files" -gt 4096 ]; then files=4096; fi
  cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "overlay"
graphroot = "$store/graph"
runroot = "$store/run"
END
  # Limits above what the outer sandbox grants make runc refuse to start.
  cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
END
}

get_base() {
  if [ -n "${PULL:-}" ]; then podman pull --quiet "$base" >/dev/null; return; fi
  local suite
  suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  mmdebstrap --quiet --variant=minbase \
    --include=python3,python3-venv,python-is-python3,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" - | podman import --quiet - "$base" >/dev/null
  echo "the base image is a stand-in with Debian's Python (PULL=1 takes the real one)"
}

build() { # the host's certificate authorities are lent for the build; they are no part of the image
  local lend=()
  if [ -f "$authorities" ]; then
    lend=(--volume "$authorities:$authorities:ro" --env "PIP_CERT=$authorities")
  fi
  podman build --quiet --isolation chroot --network host --pull=never "${lend[@]}" \
    --tag "$image" . >/dev/null
}

run() {
  podman run --rm --network none --read-only --read-only-tmpfs=false --cap-drop ALL \
    --security-opt no-new-privileges "$@"
}

check_contents() {
  run --interactive --entrypoint python "$image" - <<'END'
import os
import shutil

import archiver

assert (os.getuid(), os.getgid()) == (10001, 10001), "not user 10001"
for tool in ("pip", "pip3", "gcc", "make", "hatchling", "curl"):
    assert shutil.which(tool) is None, f"the image holds {tool}"
assert os.path.exists(archiver.__cached__), "no bytecode"
assert not os.access(os.path.dirname(archiver.__file__), os.W_OK), "the code can be written to"
END
}

check_front_door() { # help works; what cannot run without settings or a store says so, and exits with 2
  run "$image" --help >/dev/null
  local verb status
  for verb in run demo; do
    status=0
    run "$image" "$verb" 2>"$store/stderr" || status=$?
    [ "$status" = 2 ] && continue
    cat "$store/stderr" >&2
    echo "error: '$verb' without settings exited with $status, not 2" >&2
    return 1
  done
}

main

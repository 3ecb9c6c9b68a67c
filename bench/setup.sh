#!/usr/bin/env bash
# Puts what the speed comparison needs, and the project does not, into .cache/bench/:
#   archiver/             the archiver with what it runs on and no more, as in its image
#   venv/                 the peers (s5cmd, requests, boto3), an environment apart
#   sink, timed           built from bench/c
# Debian packages are installed only for commands that are missing. Running it again is cheap.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { # FILE-OR-COMMAND PACKAGE...: installs the packages where it is missing
  [ -e "$1" ] || command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || { echo "error: $1 is missing: install ${*:2}" >&2; exit 1; }
  [ -n "${refreshed:-}" ] || apt-get update -qq
  refreshed=yes
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}" >/dev/null
}

need nginx nginx-light
need curl curl
need gcc gcc libc6-dev
need /usr/include/openssl/ssl.h libssl-dev
bench/build.sh

home=.cache/bench
locked=(requirements/runtime.txt requirements/build.txt)
if ! cat "${locked[@]}" | cmp -s - "$home/locked.txt"; then
  rm -rf "$home/archiver"
  .venv/bin/python -m venv "$home/archiver"
  pip=("$home/archiver/bin/python" -m pip --disable-pip-version-check install --quiet)
  "${pip[@]}" --require-hashes "${locked[@]/#/-r}"
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  cat "${locked[@]}" > "$home/locked.txt"
fi
if ! cmp -s bench/peers.txt "$home/peers.txt"; then
  rm -rf "$home/venv"
  .venv/bin/python -m venv "$home/venv"
  "$home/venv/bin/python" -m pip --disable-pip-version-check install --quiet -r bench/peers.txt
  cp bench/peers.txt "$home/peers.txt"
fi

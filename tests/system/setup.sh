#!/usr/bin/env bash
# Puts what tests/system needs, and no Python package brings, into .cache/:
#   .cache/azurite/node_modules/.bin/azurite-blob   the blob store behind the signed URLs (npm, locked)
#   .cache/bin/promtool                             out of Debian's package, without its daemon
# Debian packages are installed only for commands that are missing. Running it again is cheap.
set -euo pipefail
cd "$(dirname "$0")/../.."

need() { # COMMAND PACKAGE...: installs the packages where the command is missing
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || { echo "error: $1 is missing: install $*" >&2; exit 1; }
  refresh
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}" >/dev/null
}

refresh() { # once per run: a fresh machine has no package lists
  [ -n "${refreshed:-}" ] && return
  apt-get update -qq
  refreshed=yes
}

install_azurite() {
  local home=.cache/azurite
  cmp -s tests/system/azurite/package-lock.json "$home/package-lock.json" &&
    [ -x "$home/node_modules/.bin/azurite-blob" ] && return
  need node nodejs
  need npm npm
  rm -rf "$home" && mkdir -p "$home"
  cp tests/system/azurite/package*.json "$home/"
  npm ci --prefix "$home" --ignore-scripts --no-audit --no-fund --silent
}

install_promtool() {
  command -v promtool >/dev/null && return
  [ -x .cache/bin/promtool ] && return
  need dpkg-deb dpkg
  refresh
  local work
  work=$(mktemp -d)
  (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus)
  mkdir -p .cache/bin
  dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -xO ./usr/bin/promtool >.cache/bin/promtool.part
  rm -rf "$work"
  chmod +x .cache/bin/promtool.part
  mv .cache/bin/promtool.part .cache/bin/promtool
}

need jq jq
need openssl openssl
need sha256sum coreutils
# tests/system/test_bench.py: the speed comparison's source and store.
need nginx nginx-light
need gcc gcc libc6-dev
[ -e /usr/include/openssl/ssl.h ] || need /usr/include/openssl/ssl.h libssl-dev
install_azurite
install_promtool

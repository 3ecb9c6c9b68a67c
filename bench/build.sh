#!/usr/bin/env bash
# Builds bench/c into .cache/bench/: the null store, the clock. Needs gcc and OpenSSL's headers.
set -euo pipefail
cd "$(dirname "$0")/.."

home=.cache/bench
mkdir -p "$home"
for program in sink timed; do
  built=$home/$program
  fresh=yes
  for source in bench/c/"$program".c bench/c/*.h; do
    [ "$built" -nt "$source" ] || fresh=
  done
  [ -n "$fresh" ] && continue
  # Moved into place whole: two may be building at a time.
  gcc -O2 -Wall -Wextra -o "$built.$$" bench/c/"$program".c -lssl -lcrypto -lpthread
  mv "$built.$$" "$built"
done

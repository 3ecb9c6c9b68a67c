#!/usr/bin/env bash
# Checks a downloaded copy of an archive with standard tools alone, offline: bash 4.4, GNU coreutils,
# jq 1.6 or later, OpenSSL 3 or later. VERIFY.md beside this file does the same step by step.
#
#   bash verify.sh [--public-key FILE] [--head SEQ:SHA256] [--manifest-only] DIR
#
# DIR holds the archive's objects as plain files under their keys (recordings/, records/, manifest/).
# --public-key     the key that the archive's owner gave you, not the bucket
# --head           a seal that you noted earlier: shows a cut-off or rewritten end
# --manifest-only  leave out records and files: only manifest/ was downloaded
#
# One line a check, OK or FAIL. Exit code 0: all holds, 1: something does not, 2: cannot run.
set -u
export LC_ALL=C
shopt -s nullglob

failures=0
fail() {
  printf 'FAIL  %s\n' "$1"
  failures=$((failures + 1))
}
fail_lines() { # one failure for each line of standard input
  local line
  while IFS= read -r line; do fail "$line"; done
}
ended() { # BEFORE TEXT: a check is over; OK if there are as many failures as before
  [ "$failures" -ne "$1" ] || printf 'OK    %s\n' "$2"
}
each() { # COMMAND...: run it on the lines of standard input as arguments, many at a time
  local -a names
  while mapfile -t -n 1000 names && [ ${#names[@]} -gt 0 ]; do "$@" "${names[@]}"; done
}
digest() { # SHA-256 of standard input
  local sum
  sum=$(sha256sum)
  printf '%s' "${sum%% *}"
}
usage() {
  printf '%s\n' "$1" \
    'usage: bash verify.sh [--public-key FILE] [--head SEQ:SHA256] [--manifest-only] DIR' >&2
  exit 2
}

public_key='' head='' manifest_only='' dir=''
while [ $# -gt 0 ]; do
  case $1 in
    --public-key) public_key=${2:-} && shift ;;
    --head) head=${2:-} && shift ;;
    --manifest-only) manifest_only=yes ;;
    -*) usage "unknown option $1" ;;
    *) [ -z "$dir" ] || usage 'one directory only'; dir=$1 ;;
  esac
  [ $# -gt 0 ] && shift
done
[ -d "$dir" ] || usage 'DIR is no directory'
[ -z "$public_key" ] || [ -r "$public_key" ] || usage '--public-key: cannot read the file'
[[ -z $head || $head =~ ^[0-9]{1,12}:[0-9a-f]{64}$ ]] || usage '--head takes SEQ:SHA256'
for tool in jq openssl sha256sum; do
  command -v "$tool" >/dev/null || usage "$tool is not installed"
done
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
[ -z "$public_key" ] || cat -- "$public_key" >"$tmp/given.pem" || exit 2
cd -- "$dir" || exit 2

# --- 1. the seals are numbered 0, 1, 2, … without a gap

seals=()
check_numbers() {
  local before=$failures path expected next=0
  for path in manifest/seals/*.json; do
    [[ $path =~ ^manifest/seals/[0-9]{12}\.json$ ]] && seals+=("$path")
  done
  if [ ${#seals[@]} -eq 0 ]; then
    fail 'there is no seal: nothing is archived here'
    exit 1
  fi
  for path in "${seals[@]}"; do
    printf -v expected 'manifest/seals/%012d.json' "$next"
    [ "$path" = "$expected" ] || fail "$expected is missing"
    next=$((10#${path//[!0-9]/} + 1))
  done
  for path in manifest/seals/*.json.sig; do
    [ -e "${path%.sig}" ] || fail "${path%.sig} is missing: its signature is there"
  done
  ended "$before" "${#seals[@]} seals, numbered without a gap"
}

# --- 2. each seal names the SHA-256 of the one before; totals and watermark go on

# Input: all seals, one a line. Output: FAIL lines, a SEGMENT line for each segment, a HEAD line.
# shellcheck disable=SC2016  # jq's variables, not the shell's
chain_program='
def fails($seq; $wrong; $what): if $wrong then "FAIL\tseal \($seq): \($what)" else empty end;
def name: capture("^manifest/segments/dt=(?<day>[0-9]{4}-[0-9]{2}-[0-9]{2})/(?<time>[0-9]{4})"
    + "\\.r(?<revision>[1-9][0-9]{0,8})\\.jsonl$")
  // (select(test("^manifest/events/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{6}-[0-9a-f]{8}\\.jsonl$"))
    | {day: "-", time: "-", revision: 0});
($sums | split("\n") | map(.[0:64])) as $sums
| foreach (inputs, null) as $seal ({seq: -1, total: 0};
    . as $before
    | if $seal == null then
        .out = ["HEAD\t\(.first)\t\(.watermark)",
          fails("the newest"; .seq + 2 != ($sums | length); "not one seal a file")]
      else
        .seq += 1
        | if .seq == 0 then
            .archive = $seal.archive | .key_id = $seal.key_id | .first = $seal.watermark
          else . end
        | .watermark = $seal.watermark
        | .total += ([$seal.segments[].records] | add // 0)
        | .seq as $n
        | .out = [
            fails($n; $seal.seq != $n; "has another number in it"),
            fails($n; $seal.v != 1 or $seal.type != (if $n == 0 then "genesis" else "seal" end);
              "is of another type or version"),
            fails($n; $seal.prev != (if $n == 0 then "0" * 64 else $sums[$n - 1] end);
              "prev is not the SHA-256 of the seal before"),
            fails($n; $seal.archive != .archive; "is of another archive"),
            fails($n; $seal.key_id != .key_id; "is of another key"),
            fails($n; $seal.records != .total; "records is not the running total"),
            fails($n; $n > 0 and $seal.watermark < $before.watermark; "the watermark went back"),
            ($seal.segments[]
              | ((.key | name) // null) as $name
              | fails($n; $name == null or (.sha256 | test("^[0-9a-f]{64}$") | not);
                  "names a segment as none can be named"),
                (select($name != null)
                  | "SEGMENT\t\($name.day)\t\($name.time)\t\($name.revision)\t\($n)\t\(.records)"
                    + "\t\(.sha256)\t\(.key)"))]
      end;
    .out[])'

check_chain() {
  local before=$failures tag rest
  printf '%s\n' "${seals[@]}" | each sha256sum >"$tmp/sums"
  printf '%s\n' "${seals[@]}" | each cat >"$tmp/seals"
  jq -rn --rawfile sums "$tmp/sums" "$chain_program" "$tmp/seals" >"$tmp/chain" 2>/dev/null ||
    fail 'a seal is malformed: the signatures below tell which'
  first_watermark='' head_watermark=''
  while IFS=$'\t' read -r tag rest; do
    case $tag in
      FAIL) fail "$rest" ;;
      SEGMENT) printf '%s\n' "$rest" >&3 ;;
      HEAD) IFS=$'\t' read -r first_watermark head_watermark <<<"$rest" ;;
    esac
  done <"$tmp/chain" 3>"$tmp/unsorted"
  # Day, time, revision, seal, records, SHA-256, key: a window's segments stand in a row.
  sort -t $'\t' -k 1,1 -k 2,2 -k 3,3n "$tmp/unsorted" >"$tmp/segments"
  grep_windows <"$tmp/segments" >"$tmp/windows"
  ended "$before" 'each seal names the SHA-256 of the one before; totals and watermark go on'
}
grep_windows() { # the lines that are not of events
  local line
  while IFS= read -r line; do [ "${line%%$'\t'*}" = - ] || printf '%s\n' "$line"; done
}

# --- 3. the key, its signature on each seal, and the head that one knows

check_key() {
  local before=$failures id stated object
  jq -rj '.public_key // empty' manifest/seals/000000000000.json >"$tmp/seal.pem" 2>/dev/null
  stated=$(jq -r '.key_id // empty' manifest/seals/000000000000.json 2>/dev/null)
  key=$tmp/seal.pem
  [ -z "$public_key" ] || key=$tmp/given.pem
  id=$(openssl pkey -pubin -in "$key" -outform DER 2>/dev/null | digest)
  id=${id:0:16}
  [ "$id" = "$stated" ] || fail "seal 0 is of key $stated; the key to check with is $id"
  object=manifest/keys/$stated.pem
  if [[ ! $stated =~ ^[0-9a-f]{16}$ || ! -e $object ]]; then
    fail "the public key $object is missing"
  elif [ "$(digest <"$object")" != "$(digest <"$tmp/seal.pem")" ]; then
    fail "$object is not the key in seal 0"
  fi
  ended "$before" "the archive's key is $id${public_key:+, the one that you gave}"
}

# Where seal 0 tells of them. Whoever has changed this script has changed this too: see VERIFY.md.
check_pages() {
  local before=$failures
  jq -r '.store.pages // {} | to_entries[] | select(.key | test("^manifest/keys/[A-Za-z.]+$"))
    | (.value | if test("^[0-9a-f]{64}$") then . else "0" * 64 end) + "  " + .key' \
    manifest/seals/000000000000.json >"$tmp/list" 2>/dev/null
  [ -s "$tmp/list" ] || return 0
  check_list "$tmp/list"
  ended "$before" 'VERIFY.md and verify.sh are the ones that seal 0 tells of'
}

check_signatures() {
  local before=$failures path
  for path in "${seals[@]}"; do
    if [ ! -e "$path.sig" ]; then
      fail "$path.sig is missing"
    elif ! openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$path" \
      -sigfile "$path.sig" >/dev/null 2>&1; then
      fail "$path.sig is no signature of the key over $path"
    fi
  done
  ended "$before" 'each seal has a signature of the key'
}

check_head() {
  local before=$failures seq=$((10#${head%%:*})) sum
  mapfile -t -s "$seq" -n 1 sum <"$tmp/sums"
  if [ ${#sum[@]} -eq 0 ]; then
    fail "the chain ends before seal $seq, which you know"
  elif [ "${sum[0]%% *}" != "${head##*:}" ]; then
    fail "seal $seq is not the one that you know"
  fi
  ended "$before" "seal $seq is the one that you know"
}

# --- 4. each segment has the bytes that its seal tells of, and a pointer to it

check_segments() {
  local before=$failures day seq sum key stem beside
  cut -f 7 "$tmp/segments" | sort | uniq -d >"$tmp/twice"
  fail_lines < <(while IFS= read -r key; do echo "$key stands in two seals"; done <"$tmp/twice")
  while IFS=$'\t' read -r _ _ _ seq _ sum key; do
    printf '%s  %s\n' "$sum" "$key"
  done <"$tmp/segments" >"$tmp/list"
  check_list "$tmp/list"
  while IFS=$'\t' read -r day _ _ seq _ sum key; do
    stem=${key%.jsonl} beside=
    IFS= read -r -d '' beside <"$stem.seal"
    [ "$beside" = "$seq"$'\n' ] || fail "$stem.seal is missing, or does not say $seq"
    [ "$day" = - ] || continue # those of windows list records too: see below
    beside=
    IFS= read -r -d '' beside <"$stem.sha256"
    [ "$beside" = "$sum  $key"$'\n' ] || fail "$stem.sha256 is missing, or lists something else"
  done <"$tmp/segments" 2>/dev/null
  ended "$before" "$(lines "$tmp/segments") segments have the bytes that their seals tell of"
}
check_list() { # FILE in the form of sha256sum
  [ -s "$1" ] || return 0
  sha256sum -c --quiet --strict "$1" >"$tmp/bad" 2>/dev/null || fail_lines <"$tmp/bad"
}
lines() { # how many lines a file has
  local -a all
  mapfile -t all <"$1"
  printf '%s' "${#all[@]}"
}

# --- 5. each window balances, and none is left out

# Input: all windows' segments, in order; in $passed the keys of those that are in no seal and are no
# segments: a writer had to pass such a revision over. Output: FAIL lines; LISTED with a SHA-256 and the ids that it
# must be of; SEGMENT, then its RECORD and FILE lines.
# shellcheck disable=SC2016  # jq's variables, not the shell's
windows_program='
def fails($name; $wrong; $what): if $wrong then "FAIL\t\($name.key): \($what)" else empty end;
def segment: [label $closed | range(1e12) | input
  | ., (if .type == "window" then break $closed else empty end)];
def set: map({(.): true}) | add // {};
def escaped: [split("\\") | join("\\\\") | split("\n") | join("\\n") | split("\t") | join("\\t")
  | split("\u0000") | join("\\0000")][0];
def uncovered($until): if .covered < $until then
    "FAIL\tno window from \(.covered) to \($until), and the loop has passed it" else empty end;
($names | split("\n") | map(select(. != "") | split("\t")
  | {start: "\(.[0])T\(.[1][0:2]):\(.[1][2:4]):00Z", revision: (.[2] | tonumber),
     records: (.[4] | tonumber), sum: .[5], key: .[6],
     stem: (.[6] | sub("[0-9]+\\.jsonl$"; ""))})) as $names
| ($passed | split("\n") | set) as $taken
| foreach (range($names | length), null) as $i ({covered: $first, end: ""};
    if $i == null then .out = [uncovered($mark)]
    else
      $names[$i] as $name | segment as $lines
      | $lines[-1] as $line | $lines[:-1] as $records
      | .out = []
      | if $name.start == .start then . else
          .out = [fails($name; .end > $name.start; "overlaps the window before"),
            uncovered([$name.start, $mark] | min)]
          | .start = $name.start | .revision = 0 | .calls = {} | .told = {}
        end
      | (.revision + 1) as $next | .revision = $name.revision
      | .end = $line.to | .covered = ([.covered, .end] | max)
      | .calls = reduce $records[] as $new (.calls;
          if (.[$new.call_id][0] // 0) <= $new.revision
          then .[$new.call_id] = [$new.revision, $new.outcome] else . end)
      | ($line.pending | set) as $pending | ($line.vanished | set) as $vanished
      | .told += $pending
      | .calls as $calls
      | [(.calls + .told) | keys[] | select($vanished[.] | not)] as $listed
      | [$listed[] | select($pending[.] | not) | $calls[.][1] // "lost"] as $outcomes
      | def count($outcome): [$outcomes[] | select(. == $outcome)] | length;
        .out += [
          fails($name; $line.from != $name.start or $line.revision != $name.revision;
            "is of another window"),
          fails($name; [range($next; $name.revision) | $name.stem + "\(.).jsonl"]
              | any(.[]; $taken[.] | not); "a revision before it is in no seal"),
          fails($name; ($records | length) != $name.records; "its seal counts other records"),
          fails($name; $line.listed != $line.archived + $line.no_recording + $line.failed
              + ($line.pending | length); "does not balance"),
          fails($name; count("lost") > 0; "a call was pending and is not heard of again"),
          fails($name; [$line.archived, $line.no_recording, $line.failed]
              != [count("archived"), count("no_recording"), count("failed")];
            "its counts are not those of its records"),
          "LISTED\t\($line.listed_sha256)\t\($listed | map(. + "\n") | add // "" | escaped)",
          "SEGMENT\t\($name.key)\t\($name.sum)",
          ($records[]
            | (if .record | test("^records/dt=[0-9-]{10}/[A-Za-z0-9_.-]+/r[0-9]+\\.json$") | not then
                fails($name; true; "a record with an odd key") else "RECORD\t\(.record)" end),
              fails($name; .outcome == "archived" and all(.files[]; .kind != "recording");
                "a call is archived without a recording"),
              (.files[]
                | if (.key + "  " + .sha256 | test("^recordings/dt=[0-9-]{10}/[A-Za-z0-9_.-]+/"
                    + "[A-Za-z0-9_.-]+  [0-9a-f]{64}$") | not)
                  then fails($name; true; "a file with an odd key or SHA-256")
                  else "FILE\t\(.sha256)  \(.key)" end))]
    end;
    .out[])'

check_windows() {
  local before=$failures tag one two count=0
  mkdir "$tmp/ids"
  cut -f 7 "$tmp/windows" | each cat >"$tmp/lines" 2>/dev/null
  not_ours >"$tmp/passed"
  jq -rn --rawfile passed "$tmp/passed" --rawfile names "$tmp/windows" --arg first "$first_watermark" --arg mark "$head_watermark" \
    "$windows_program" "$tmp/lines" >"$tmp/told" 2>/dev/null ||
    fail 'a segment is malformed: its SHA-256 above tells which'
  while IFS=$'\t' read -r tag one two; do
    case $tag in
      FAIL) fail "$one" ;;
      LISTED)
        printf '%b' "$two" >"$tmp/ids/$count"
        printf '%s  %s\n' "$one" "$tmp/ids/$count" >&3
        count=$((count + 1))
        ;;
    esac
  done <"$tmp/told" 3>"$tmp/list"
  if [ -s "$tmp/list" ] && ! sha256sum -c --status --strict "$tmp/list" 2>/dev/null; then
    fail 'a listed_sha256 is not that of the ids that its window tells of'
  fi
  ended "$before" "$count listings balance, no id is lost, no window left out"
}

not_ours() { # the keys of segments that no seal names and that are none
  local path
  for path in manifest/segments/dt=*/*.jsonl; do printf '%s\n' "$path"; done | sort >"$tmp/there"
  cut -f 7 "$tmp/windows" | sort | comm -13 - "$tmp/there" | while IFS= read -r path; do
    jq -es 'all(.[]; .v == 1) and .[-1].type == "window"' "$path" >/dev/null 2>&1 ||
      printf '%s\n' "$path"
  done
}

# A sighting tells ids that were listed and had no record then. Once a later listing of its window is
# sealed, each of them has a record, here or in another window, or stands in pending.
check_sightings() {
  local before=$failures path id count
  for path in manifest/sightings/dt=*/*.json; do printf '%s\n' "$path"; done >"$tmp/sightings"
  [ -s "$tmp/sightings" ] || return 0
  jq -c 'if .type == "window" then .pending[] else .call_id end' "$tmp/lines" 2>/dev/null |
    sort -u >"$tmp/known"
  jq -c 'select(.type == "window") | {(.from): .listed_at}' "$tmp/lines" >"$tmp/listed" 2>/dev/null
  while IFS= read -r path; do
    jq -r --slurpfile listed "$tmp/listed" '($listed | add) as $newest
      | if .v == 1 and .type == "sighting" then . else error("no sighting") end
      | select(($newest[.from] // "") >= .at).ids[] | tojson' "$path" 2>/dev/null ||
      echo "NOTE  $path is no sighting of this format" >&3
  done <"$tmp/sightings" 3>"$tmp/notes" | sort -u >"$tmp/sighted"
  cat "$tmp/notes"
  comm -13 "$tmp/known" "$tmp/sighted" >"$tmp/unknown"
  while IFS= read -r id; do
    [ -n "$(record_of "$id")" ] || printf '%s\n' "$id"
  done <"$tmp/unknown" >"$tmp/lost"
  count=$(lines "$tmp/lost")
  if [ "$count" -gt 0 ] && [ -n "$manifest_only" ]; then
    echo "NOTE  $count sighted calls have no sealed record: whether they have any, records/ tells"
  elif [ "$count" -gt 0 ]; then
    fail "$count sighted calls have no record and are not pending"
  fi
  ended "$before" "$(lines "$tmp/sightings") sightings: each call has a record or is pending"
}
record_of() { # ID as JSON: a record of the call that no segment tells of yet
  local name=${1:1:-1} path
  [[ $name =~ ^[A-Za-z0-9_-]{1,128}$ ]] || name=id.$(jq -j . <<<"$1" | digest)
  for path in records/dt=*/"$name"/r*.json; do
    jq -e '.v == 1 and .type == "call"' "$path" >/dev/null 2>&1 && printf '%s\n' "$path"
  done
}

# --- 6. the records are the lines of their segments; every file has its SHA-256

check_records() {
  local before=$failures count
  told RECORD >"$tmp/records"
  count=$(lines "$tmp/records")
  # All at once, which is quick; segment by segment only to name what is wrong.
  all_records_hold || segment_by_segment
  ended "$before" "$count records are the lines of their segments, and stand in the .sha256 files"
}
told() { # TAG: what step 5 told of it
  local tag one rest
  while IFS=$'\t' read -r tag one rest; do
    [ "$tag" != "$1" ] || printf '%s\n' "$one"
  done <"$tmp/told"
}
all_records_hold() {
  [ "$(each cat <"$tmp/records" 2>/dev/null | digest)" = "$(record_lines | digest)" ] || return 1
  each sha256sum <"$tmp/records" >"$tmp/record-sums" 2>/dev/null
  [ "$(companions 2>/dev/null | each cat 2>/dev/null | digest)" = "$(expected_companions | digest)" ]
}
record_lines() { # of all segments; a window line is the one that begins so
  local line
  while IFS= read -r line; do
    [[ $line == '{"archived":'* ]] || printf '%s\n' "$line"
  done <"$tmp/lines"
}
companions() {
  local key
  told SEGMENT | while IFS= read -r key; do printf '%s\n' "${key%.jsonl}.sha256"; done
}
expected_companions() { # each segment, then its records, then their files
  local tag one sum
  local -a files=()
  while IFS=$'\t' read -r tag one sum; do
    case $tag in
      SEGMENT)
        names "${files[@]}"
        printf '%s  %s\n' "$sum" "$one"
        files=()
        ;;
      RECORD) IFS= read -r sum <&4 && printf '%s\n' "$sum" ;;
      FILE) files+=("$one") ;;
    esac
  done <"$tmp/told" 4<"$tmp/record-sums"
  names "${files[@]}"
}
segment_by_segment() {
  local tag one rest key=''
  local -a records=() files=()
  while IFS=$'\t' read -r tag one rest; do
    case $tag in
      SEGMENT)
        [ -z "$key" ] || check_one "$key"
        key=$one records=() files=()
        ;;
      RECORD) records+=("$one") ;;
      FILE) files+=("$one") ;;
    esac
  done <"$tmp/told"
  [ -z "$key" ] || check_one "$key"
}
check_one() { # KEY of a segment; its records and files are the caller's variables
  local companion=${1%.jsonl}.sha256 lines objects
  lines=$(head -n -1 "$1" 2>/dev/null | digest)
  objects=$(names "${records[@]}" | each cat 2>/dev/null | digest)
  [ "$lines" = "$objects" ] || name_records "$1"
  {
    sha256sum "$1"
    names "${records[@]}" | each sha256sum
    names "${files[@]}"
  } >"$tmp/companion" 2>/dev/null
  if [ ! -e "$companion" ]; then
    fail "$companion is missing"
  elif [ "$(digest <"$companion")" != "$(digest <"$tmp/companion")" ]; then
    fail "$companion does not list its segment, records and files as they are"
  fi
}
name_records() { # KEY of a segment some of whose records are not its lines
  local -a all
  local i
  mapfile -t all <"$1"
  for i in "${!records[@]}"; do
    if [ ! -e "${records[i]}" ]; then
      fail "${records[i]} is missing"
    elif [ "$(printf '%s\n' "${all[i]}" | digest)" != "$(digest <"${records[i]}")" ]; then
      fail "${records[i]} is not the line of its segment"
    fi
  done
}
names() { # one argument a line; nothing for none
  [ $# -eq 0 ] || printf '%s\n' "$@"
}

check_files() {
  local before=$failures
  told FILE | sort -u >"$tmp/list"
  check_list "$tmp/list"
  ended "$before" "$(lines "$tmp/list") files have the SHA-256 that their records tell of"
}

check_numbers
check_chain
check_key
check_pages
check_signatures
[ -z "$head" ] || check_head
check_segments
check_windows
check_sightings
if [ -z "$manifest_only" ]; then
  check_records
  check_files
fi
if [ "$failures" -gt 0 ]; then
  printf '%s\n' "$failures failed"
  exit 1
fi
[ -n "$public_key" ] || echo 'NOTE  no --public-key: the signatures were checked with the key in seal 0'
[ -n "$head" ] || echo 'NOTE  no --head: whether the newest seals were cut off cannot be told'
printf 'all holds; note the newest seal: %s:%s\n' "$((${#seals[@]} - 1))" "$(digest <"${seals[-1]}")"

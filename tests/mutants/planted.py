"""Bugs that are planted one at a time: each takes a safeguard away, and some test must fail.

A bug is a piece of the code and what stands in its place; `tests` are those that are run, up to the
first failure. `make mutants` plants them, in a copy; `test_planted.py` sees that they still fit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """What a careless change might do to `file` (below `archiver/`)."""

    name: str
    file: str
    old: str
    new: str
    tests: str


BUGS = (
    # --- what is written, and in which order
    Bug(
        "a record without its recording",
        "pipeline/recording.py",
        "put_or_beside(\n                    self._store,\n                    own_key,\n"
        "                    view,\n                    content_type,\n"
        "                    retain_until,\n                    held,\n"
        "                    sha256=digests.sha256,\n                )",
        "Stored(own_key, None, digests.bytes, digests.sha256)",
        "tests/unit/test_transfer.py",
    ),
    Bug(
        "a multipart recording under the plain key",
        "pipeline/recording.py",
        "key = layout.alternative_key(key, self._tag())",
        "key = key",
        "tests/unit/test_transfer.py tests/model",
    ),
    Bug(
        "an upload that breaks is not aborted",
        "pipeline/recording.py",
        "upload.abort()",
        "pass",
        "tests/unit/test_transfer.py",
    ),
    Bug(
        "the announced digest is not compared",
        "pipeline/recording.py",
        "if received.md5_differs and not is_known:",
        "if False:",
        "tests/unit/test_transfer.py",
    ),
    Bug(
        "any answer to a write does for a look at it",
        "store/bucket.py",
        "return same and asked.keys().isdisjoint(_DROPPED_IN_SILENCE)",
        "return True",
        "tests/unit/test_believed.py",
    ),
    Bug(
        "a store is believed that proved nothing",
        "wiring.py",
        "bucket.trust_put_checksum = auto and found.whole_checksums",
        "bucket.trust_put_checksum = True",
        "tests/unit/test_believed.py",
    ),
    # --- HTTP and threads
    Bug(
        "a redirect is followed",
        "core/http.py",
        ".follow_redirects(False)",
        ".follow_redirects(True)",
        "tests/unit/test_http.py",
    ),
    Bug(
        "memory is given back while it is still being sent",
        "core/http.py",
        "                    view.release()\n                    break",
        "                    break",
        "tests/unit/test_http.py",
    ),
    Bug(
        "a connection goes on with bytes that nobody asked for",
        "core/http.py",
        "max_keepalive_connections=0",
        "max_keepalive_connections=10",
        "tests/unit/test_http.py",
    ),
    Bug(
        "a body that ends early passes for whole",
        "core/http.py",
        "            raise _translated(error, self._deadline) from None\n        liveness.note()",
        "            piece = None\n        liveness.note()",
        "tests/unit/test_http.py",
    ),
    Bug(
        "a request lasts as long as a byte comes now and then",
        "core/http.py",
        "builder = builder.timeout(timedelta(seconds=seconds))",
        "pass",
        "tests/unit/test_http.py",
    ),
    Bug(
        "a server that drips holds a request for ever",
        "core/http.py",
        "socket.socket.shutdown(self._connection, socket.SHUT_RDWR)",
        "pass",
        "tests/unit/test_http.py",
    ),
    Bug(
        "a length beside chunks is taken",
        "source/recordings.py",
        "if two_lengths or",
        "if",
        "tests/hostile/test_recording_urls.py",
    ),
    Bug(
        "as much is under way as ever while source or store say that it is too much",
        "core/concurrency.py",
        "self._changed.wait_for(lambda: self._at_work < self.limit)",
        "pass",
        "tests/unit/test_concurrency_limit.py",
    ),
    Bug(
        "threads look at an object's lock side by side",
        "store/locks.py",
        "self._mutexes[hash(key) % MUTEXES]",
        "threading.RLock()",
        "tests/contract/test_lock_modes.py",
    ),
    Bug(
        "two threads share a buffer",
        "pipeline/recording.py",
        "self._local = threading.local()",
        "self._local: Any = lambda: None",
        "tests/unit/test_download_tasks.py",
    ),
    Bug(
        "a recording is not read back where a HEAD proves too little",
        "pipeline/recording.py",
        "if digests.sha256 != stored.sha256:",
        "if False:",
        "tests/unit/test_transfer.py",
    ),
    Bug(
        "our record instead of the one that was there first",
        "pipeline/call.py",
        "return self._adopt(made.key, held)",
        "pass",
        "tests/unit/test_transfer.py tests/unit/test_windows.py tests/model",
    ),
    Bug(
        "a segment of another writer's is taken for ours",
        "pipeline/window.py",
        "except KeyTaken:\n                return False",
        "except KeyTaken:\n"
        "                result.status = WindowStatus.CLOSED\n"
        "                return True",
        "tests/unit/test_neighbours.py",
    ),
    # --- the store
    Bug(
        "create-once is not asked for",
        "store/bucket.py",
        '**({"IfNoneMatch": "*"} if self.conditional_writes else {}),',
        "",
        "tests/contract/test_store.py",
    ),
    Bug(
        "other bytes of the same size are adopted",
        "store/bucket.py",
        "if head.size != wanted.size or self._hash(wanted.key, head.version_id) != wanted.sha256:",
        "if head.size != wanted.size:",
        "tests/contract/test_store.py",
    ),
    Bug(
        "what was written is not looked at",
        "store/bucket.py",
        "if head is None or head.size != stored.size:",
        "if head is None:",
        "tests/faults/test_store_faults.py",
    ),
    Bug(
        "the store's own checksum is not compared",
        "store/bucket.py",
        "if head.sha256 not in (None, stored.sha256):",
        "if False:",
        "tests/faults/test_store_faults.py",
    ),
    Bug(
        "a lock that the store dropped is not set again",
        "store/locks.py",
        "for mode in modes:\n            if not _is_weaker(head, mode, until):",
        "for mode in modes:\n            if True:",
        "tests/contract/test_store.py",
    ),
    Bug(
        "an acknowledgement without an ETag counts",
        "store/client.py",
        "if not isinstance(etag, str) or not etag:",
        "if False:",
        "tests/faults/test_store_faults.py",
    ),
    Bug(
        "an upload whose end was swallowed counts as lost",
        "store/bucket.py",
        'landed = error.reason in ("no_upload", "taken") and self._bucket.head(self._key)',
        "landed = False",
        "tests/faults/test_store_faults.py",
    ),
    # --- the source
    Bug(
        "one pass over a listing is enough",
        "source/listing.py",
        "3 if found.is_short else 2",
        "1",
        "tests/unit/test_listing.py tests/model",
    ),
    Bug(
        "a total that speaks of more is not heard",
        "source/listing.py",
        "3 if found.is_short else 2",
        "2",
        "tests/unit/test_listing.py tests/model",
    ),
    Bug(
        "what only one pass saw is forgotten",
        "source/listing.py",
        "gone = {i: own.pop(i) for i in sorted(own.keys() - found.ids)} if stable else {}",
        "gone = {}\n        own = {i: own[i] for i in own if i in found.ids or not stable}",
        "tests/unit/test_listing.py tests/unit/test_relisting.py tests/model",
    ),
    Bug(
        "a page of repeats ends the listing",
        "source/api.py",
        "if not entries or (idle and (repeats or idle == IDLE_PAGES)):",
        "if not entries or idle:",
        "tests/unit/test_source_client.py tests/unit/test_listing.py",
    ),
    Bug(
        "a refused token is one call's matter",
        "source/api.py",
        "return error.status == 401 and error.reach is not Reach.ITEM",
        "return False",
        "tests/cli/test_expiry.py",
    ),
    Bug(
        "an expired token is not waited for",
        "source/json_api.py",
        "if is_last or not self._were_replaced(used):",
        "if True:",
        "tests/unit/test_source_client.py",
    ),
    Bug(
        "any host may serve a recording",
        "source/recordings.py",
        "if self._hosts.isdisjoint({authority, authority.removesuffix(default)}):",
        "if False:",
        "tests/hostile/test_recording_urls.py",
    ),
    Bug(
        "a broken download goes on with whatever is there now",
        "source/recordings.py",
        'headers |= {"Range": f"bytes={at}-", "If-Match": known.etag or ""}',
        'headers |= {"Range": f"bytes={at}-"}',
        "tests/unit/test_resume.py",
    ),
    Bug(
        "a range is not compared with what was asked for",
        "source/recordings.py",
        'if not same or headers.get("content-range") != wanted or',
        "if not same or",
        "tests/unit/test_resume.py",
    ),
    Bug(
        "a download that crawls goes on for ever",
        "source/recordings.py",
        "if self._seconds > self.blobs.deadline_seconds(length):",
        "if False:",
        "tests/unit/test_resume.py",
    ),
    # --- the ledger
    Bug(
        "a call that waits stands as vanished",
        "pipeline/segment_writer.py",
        "vanished=sorted(known - listed - pending),",
        "vanished=sorted(known - listed),",
        "tests/unit/test_relisting.py tests/unit/test_orphan_records.py tests/model",
    ),
    Bug(
        "a call that was listed once is forgotten",
        "pipeline/call_records.py",
        "for call_id in sorted(loose | state.pending)}",
        "for call_id in sorted(state.pending)}",
        "tests/unit/test_orphan_records.py tests/unit/test_relisting.py tests/model",
    ),
    Bug(
        "listed calls are not written down before they are worked at",
        "pipeline/sightings.py",
        "key = self._put(window, ids) if ids else None",
        "key = None",
        "tests/unit/test_sightings.py",
    ),
    Bug(
        "a sealed window is not held against what was sighted since",
        "pipeline/relist.py",
        "waits or not known.complete or known.lacks_sighted or",
        "waits or not known.complete or",
        "tests/unit/test_sightings.py",
    ),
    Bug(
        "what other processes wrote down is not asked for before a window is closed",
        "pipeline/sightings.py",
        "self.read(at, reload=True)",
        "self.read(at)",
        "tests/unit/test_sightings.py",
    ),
    Bug(
        "a pending call is forgotten by the next listing",
        "pipeline/call_records.py",
        "for call_id in sorted(loose | state.pending)}",
        "for call_id in sorted(loose)}",
        "tests/unit/test_relisting.py tests/unit/test_orphan_records.py tests/model",
    ),
    Bug(
        "given up before its time",
        "pipeline/call.py",
        "return self._clock.now() >= window.end + self._give_up",
        "return True",
        "tests/unit/test_windows.py tests/unit/test_transfer.py",
    ),
    Bug(
        "what is missing in an open window is written down",
        "pipeline/call.py",
        "if not settled:\n                raise",
        "if False:\n                raise",
        "tests/unit/test_windows.py tests/unit/test_transfer.py",
    ),
    Bug(
        "a lost sidecar takes the old one with it",
        "pipeline/call.py",
        "elif before is not None:\n                attempt.files.append(before)  # kept",
        "elif False:\n                attempt.files.append(before)  # kept",
        "tests/unit/test_relisting.py",
    ),
    # --- the chain
    Bug(
        "a seal without its pointers stays so",
        "pipeline/chain.py",
        "if not all(self._store.head(key) is not None for key in keys):",
        "if False:",
        "tests/unit/test_sealing.py tests/model",
    ),
    Bug(
        "a segment is sealed twice",
        "pipeline/chain.py",
        "todo = [segment for segment in segments if not self._is_sealed(segment)]",
        "todo = list(segments)",
        "tests/unit/test_sealing.py tests/model",
    ),
    Bug(
        "a lost seal's place is filled",
        "pipeline/chain.py",
        "if is_beyond and not exists(number + 1):",
        "if False:",
        "tests/unit/test_sealing.py",
    ),
    Bug(
        "a seal that does not follow is followed",
        "pipeline/chain.py",
        "if following.prev != self.head.sha256 or following.archive != self.head.archive:",
        "if False:",
        "tests/unit/test_sealing.py",
    ),
    Bug(
        "another key goes on with the chain",
        "pipeline/chain.py",
        "if sealed.key_id != self._key.public.key_id:",
        "if False:",
        "tests/unit/test_sealing.py",
    ),
    Bug(
        "the watermark goes back",
        "manifest/seal.py",
        "format_time(max(watermark, previous.watermark))",
        "format_time(watermark)",
        "tests/unit/test_manifest_formats.py tests/unit/test_sealing.py",
    ),
    Bug(
        "the watermark passes an open window",
        "pipeline/loop.py",
        "if mark == window.start and (window not in results or results[window].is_closed):",
        "if True:",
        "tests/unit/test_windows.py tests/model",
    ),
    Bug(
        "a day of segments that cannot be listed ends a round under a wrong clock",
        "pipeline/loop.py",
        "if not self._backfill.is_sealed(window):\n                    self._note(",
        "if not self._segments.is_sealed(window.start):\n                    self._note(",
        "tests/unit/test_clock_check.py",
    ),
    # --- the audit
    Bug(
        "the audit takes any signature",
        "audit/chain.py",
        "if signature is not None and view.key and not view.key.verifies(data, signature):",
        "if False:",
        "tests/audit/test_damage.py",
    ),
    Bug(
        "the audit takes any seal for the one before",
        "audit/chain.py",
        "if this.prev != before_digest:",
        "if False:",
        "tests/audit/test_damage.py",
    ),
    Bug(
        "the audit does not add up a window",
        "audit/windows.py",
        'if line["listed"] != sum(line[outcome] for outcome in OUTCOMES) + len(self.pending):',
        "if False:",
        "tests/audit/test_damage.py",
    ),
    Bug(
        "the audit does not hash a segment",
        "audit/segments.py",
        '        if not same:\n            self._report("segment_mismatch"',
        '        if False:\n            self._report("segment_mismatch"',
        "tests/audit/test_damage.py",
    ),
    Bug(
        "the audit wants what covers an older record to be locked as long as it promises",
        "audit/verify.py",
        "if promise is not None and must_lock_segment(record):",
        "if promise is not None:",
        "tests/unit/test_bounded_times.py",
    ),
    # --- times that others tell, and our own
    Bug(
        "a lock counts from any end",
        "core/model.py",
        "if ended < window.start or is_too_late(ended, listed_at):",
        "if False:",
        "tests/unit/test_bounded_times.py",
    ),
    Bug(
        "a time of the far future places a call",
        "core/model.py",
        "if own is None or is_too_late(own, listed_at) else own",
        "if own is None else own",
        "tests/unit/test_bounded_times.py",
    ),
    Bug(
        "what covers a record is locked from the end that it tells",
        "pipeline/retention.py",
        "bounded = _is_implausible(found) or _has_impossible_end(found)",
        "bounded = False",
        "tests/unit/test_bounded_times.py",
    ),
    Bug(
        "a wrong clock closes windows",
        "pipeline/health.py",
        "return not wrong",
        "return True",
        "tests/unit/test_clock_check.py",
    ),
    Bug(
        "the audit takes files of other calls for a call's own",
        "audit/segment_lines.py",
        'is_own = match is not None and match["call"] == call_dir',
        "is_own = match is not None",
        "tests/audit/test_segment_lines.py",
    ),
    Bug(
        "a line whose bytes are not the canonical ones passes for canonical",
        "manifest/canonical.py",
        "same = len(found) == len(lines) and _LINES.encode_lines(found) == data",
        "same = len(found) == len(lines)",
        "tests/unit/test_canonical.py",
    ),
    Bug(
        "a float in msgspec's spelling passes for canonical",
        "manifest/canonical.py",
        "if repr(number) != text:",
        "if False:",
        "tests/unit/test_canonical.py",
    ),
)

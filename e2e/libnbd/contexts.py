"""Negotiates metadata contexts, one, several and none, and compares what BLOCK_STATUS tells of each with the extents that are known.

Environment: SOCKET, EXPORT, SIZE (bytes), WANT: a JSON object of context: [[length, status], ...] that covers the export.
"""

import json
import os
import random

import nbd

size, socket, export = int(os.environ["SIZE"]), os.environ["SOCKET"], os.environ["EXPORT"]
want = json.loads(os.environ["WANT"])


def at(context, offset):
    """Status at an offset, and how many bytes from there on have it."""
    end = 0
    for length, status in want[context]:
        end += length
        if offset < end:
            return status, end - offset
    raise AssertionError(f"{offset} is beyond the end")


def connect(contexts):
    h = nbd.NBD()
    h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_ALIGN)  # the block sizes that hvd announces are advice
    for c in contexts:
        h.add_meta_context(c)
    h.set_export_name(export)
    h.connect_unix(socket)
    for c in want:
        assert h.can_meta_context(c) == (c in contexts), c
    return h


def status(h, n, offset, flags=0):
    got = {}

    def tell(context, off, entries, err):
        assert off == offset and context not in got, (context, off)
        got[context] = list(zip(entries[::2], entries[1::2]))

    h.block_status(n, offset, tell, flags=flags)
    return got


# What is listed: all, one namespace, one name, and what is not there.
h = nbd.NBD()
h.set_opt_mode(True)
h.set_export_name(export)
h.connect_unix(socket)
for queries, listed in (
    ([], set(want)),
    (["base:"], {"base:allocation"}),
    (["qemu:"], {c for c in want if c.startswith("qemu:")}),
    (["qemu:dirty-bitmap:"], {c for c in want if c.startswith("qemu:dirty-bitmap:")}),
    (["base:allocation", "qemu:allocation-depth"], {"base:allocation", "qemu:allocation-depth"}),
    (["qemu:dirty-bitmap:nosuch"], set()),
    (["base:nosuch", "nosuch:"], set()),
):
    h.clear_meta_contexts()
    for q in queries:
        h.add_meta_context(q)
    names = []
    n = h.opt_list_meta_context(names.append)
    got = {c for c in names if not c.startswith("x-hv:")}
    assert n == len(names) and got == listed, f"{queries}: {names}, want {listed}"
exports = []
h.opt_list(lambda name, description: exports.append(name))
assert export.split("@")[0] in exports, exports  # those of snapshots are there unlisted
h.opt_info()
assert h.get_size() == size and h.can_multi_conn()
h.opt_abort()

rng = random.Random(1)
selections = [[c] for c in want] + [list(want), list(want)[:2], list(want) + ["qemu:dirty-bitmap:nosuch", "nosuch:context"]]
for contexts in selections:
    h = connect(contexts)
    known = {c for c in contexts if c in want}
    for _ in range(64):
        offset = rng.randrange(size)
        n = rng.randrange(1, size - offset + 1)
        # REQ_ONE: one extent of each context, which does not reach beyond the request.
        got = status(h, n, offset, nbd.CMD_FLAG_REQ_ONE)
        assert set(got) == known, (got, known)
        for c, extents in got.items():
            is_now, left = at(c, offset)
            assert extents == [(min(n, left), is_now)], f"{c} of {n} at {offset}: {extents}, want {min(n, left), is_now}"
        # Without: all of them, up to the end of the request; the last may go on behind it.
        got = status(h, n, offset)
        assert set(got) == known, (got, known)
        for c, extents in got.items():
            here = offset
            for i, (length, is_now) in enumerate(extents):
                assert here < offset + n, f"{c}: an extent behind the request"
                there, left = at(c, here)
                assert is_now == there, f"{c} at {here}: status {is_now}, want {there}"
                assert length == left or i == len(extents) - 1 and length <= left, f"{c} at {here}: {length} bytes, want {left}"
                here += length
            assert here >= offset + n, f"{c} of {n} at {offset} ends at {here}"
    h.shutdown()

# None selected.
h = nbd.NBD()
h.set_strict_mode(0)
h.set_export_name(export)
h.connect_unix(socket)
try:
    h.block_status(512, 0, lambda *_: 0)
    raise AssertionError("block status without a context was answered")
except nbd.Error as e:
    assert e.errno == "EINVAL", e
assert h.pread(1, 0) is not None
h.shutdown()

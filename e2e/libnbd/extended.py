"""Needs a libnbd that speaks extended headers (1.18): they must be agreed on, and lengths beyond 32 bits go out as one request.

Environment: URI of an export of 16 GiB that reads as zeroes, SIZE (bytes).
"""

import os

import nbd

size, gib = int(os.environ["SIZE"]), 1 << 30
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.connect_uri(os.environ["URI"])
assert h.get_extended_headers_negotiated(), "no extended headers"


def status(n, offset, flags=0):
    got = {}
    h.block_status_64(n, offset, lambda context, off, entries, err: got.__setitem__(context, list(entries)), flags=flags)
    return got


assert status(size, 0)["base:allocation"] == [(size, 3)], "an empty volume of 16 GiB is one extent"
h.pwrite(b"x" * 4096, 6 * gib)
h.pwrite(b"y" * 4096, 9 * gib)
got = status(size, 0)
assert got["base:allocation"] == [(6 * gib, 3), (4096, 0), (3 * gib - 4096, 3), (4096, 0), (size - 9 * gib - 4096, 3)], got
assert got["qemu:allocation-depth"] == [(6 * gib, 0), (4096, 1), (3 * gib - 4096, 0), (4096, 1), (size - 9 * gib - 4096, 0)], got
assert status(8 * gib, gib, nbd.CMD_FLAG_REQ_ONE)["base:allocation"] == [(5 * gib, 3)]
# A server that knows BLOCK_STATUS with a payload tells of the chosen context alone.
assert h.can_block_status_payload()
chosen = []
h.block_status_filter(size, 0, ["base:allocation"], lambda context, off, entries, err: chosen.append(context))
assert chosen == ["base:allocation"], chosen
h.cache(8 * gib, 0)
h.zero(8 * gib, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 6 * gib) == bytes(4096)
h.trim(size - gib, gib)
assert h.pread(4096, 9 * gib) == bytes(4096)
assert status(size, 0)["base:allocation"] == [(size, 3)]
try:
    h.trim(size, gib)
    raise AssertionError("a trim of 16 GiB beyond the end was done")
except nbd.Error as e:
    assert e.errno == "EINVAL", e
h.shutdown()

"""Asks for what a server must refuse. libnbd checks nothing itself here, so each refusal is the server's; after each the connection is as good as before.

Environment: URI of a writable export that reads as zeroes, READ_ONLY the URI of one that is not writable, SIZE (bytes of each), SOCKET of hvd.
"""

import os

import nbd

size = int(os.environ["SIZE"])


def connect(uri, structured):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    assert h.get_size() == size
    return h


def refused(h, errno, what, request):
    try:
        request()
    except nbd.Error as e:
        assert e.errno == errno, f"{what}: {e.errno}, want {errno}"
    else:
        raise AssertionError(f"{what} was done, want {errno}")
    assert h.aio_is_ready(), f"{what}: the connection is gone"
    assert h.pread(512, 0) == bytes(512), f"{what}: the first sector has changed"


def extents(h):
    got = []
    h.block_status(min(size, 1 << 30), 0, lambda context, off, entries, err: got.extend(entries))
    return got


for structured in (True, False):
    h = connect(os.environ["URI"], structured)
    for at in (size, size - 511, 1 << 62, (1 << 64) - 512):
        refused(h, "EINVAL", f"read at {at}", lambda: h.pread(512, at))
        refused(h, "ENOSPC", f"write at {at}", lambda: h.pwrite(b"x" * 512, at))
        refused(h, "ENOSPC", f"write with FUA at {at}", lambda: h.pwrite(b"x" * 512, at, flags=nbd.CMD_FLAG_FUA))
        refused(h, "ENOSPC", f"zero at {at}", lambda: h.zero(512, at))
        refused(h, "EINVAL", f"trim at {at}", lambda: h.trim(512, at))
        refused(h, "EINVAL", f"cache at {at}", lambda: h.cache(512, at))
        refused(h, "EINVAL", f"block status at {at}", lambda: h.block_status(512, at, lambda *_: 0))
    # Flags that a command does not have, and one that nobody has.
    refused(h, "EINVAL", "flush with NO_HOLE", lambda: h.flush(flags=nbd.CMD_FLAG_NO_HOLE))
    refused(h, "EINVAL", "read with FAST_ZERO", lambda: h.pread(512, 0, flags=nbd.CMD_FLAG_FAST_ZERO))
    refused(h, "EINVAL", "write with DF", lambda: h.pwrite(b"x" * 512, 0, flags=nbd.CMD_FLAG_DF))
    refused(h, "EINVAL", "write with NO_HOLE", lambda: h.pwrite(b"x" * 512, 0, flags=nbd.CMD_FLAG_NO_HOLE))
    refused(h, "EINVAL", "trim with REQ_ONE", lambda: h.trim(512, 0, flags=nbd.CMD_FLAG_REQ_ONE))
    refused(h, "EINVAL", "cache with an unknown flag", lambda: h.cache(512, 0, flags=1 << 14))
    if structured:
        refused(h, "EOVERFLOW", "read of 33 MiB with DF", lambda: h.pread((32 << 20) + 1, 0, flags=nbd.CMD_FLAG_DF))
    else:
        refused(h, "EINVAL", "block status without structured replies", lambda: h.block_status(512, 0, lambda *_: 0))
    # No length is no request: done, and nothing changed.
    h.pwrite(b"", 0)
    h.zero(0, 0)
    h.trim(0, 0)
    assert h.pread(0, 0) == b""
    h.pwrite(b"y" * 512, size - 512)  # the last sector is there
    assert h.pread(512, size - 512) == b"y" * 512
    h.zero(512, size - 512)
    h.shutdown()

    h = connect(os.environ["READ_ONLY"], structured)
    assert h.is_read_only()
    assert h.pread(512, 0) == bytes(512)
    for flags in (0, nbd.CMD_FLAG_FUA):
        refused(h, "EPERM", "write to a read-only export", lambda: h.pwrite(b"x" * 512, 0, flags=flags))
        refused(h, "EPERM", "zero of a read-only export", lambda: h.zero(512, 0, flags=flags))
        refused(h, "EPERM", "trim of a read-only export", lambda: h.trim(512, 0, flags=flags))
    if structured:
        assert extents(h), "no block status of a read-only export"
    h.shutdown()

# A name that nobody has: an error that leaves the negotiation as it was.
h = nbd.NBD()
h.set_opt_mode(True)
h.set_export_name("nosuch")
h.connect_unix(os.environ["SOCKET"])
for _ in range(3):
    try:
        h.opt_go()
    except nbd.Error as e:
        assert e.errno == "ENOENT", e
    else:
        raise AssertionError("an export that is not there was opened")
    assert h.aio_is_negotiating()
h.opt_abort()

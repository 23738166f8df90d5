"""Sends each command with each of its flags, at random places and of random lengths, and keeps a copy of what the export must hold.

Environment: URI, SIZE (bytes), SEED, COUNT, STRUCTURED (1 or 0). Prints the SHA-256 of the copy, which was compared with the whole export at the end.
"""

import hashlib
import os
import random

import nbd

size, count = int(os.environ["SIZE"]), int(os.environ["COUNT"])
rng = random.Random(int(os.environ["SEED"]))
h = nbd.NBD()
h.set_request_structured_replies(os.environ["STRUCTURED"] == "1")
h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_ALIGN)  # the block sizes that hvd announces are advice
h.connect_uri(os.environ["URI"])
assert h.get_size() == size, h.get_size()
assert h.get_structured_replies_negotiated() == (os.environ["STRUCTURED"] == "1")
for can in (h.can_cache, h.can_fast_zero, h.can_flush, h.can_fua, h.can_multi_conn, h.can_trim, h.can_zero):
    assert can(), can.__name__
assert h.can_df() == h.get_structured_replies_negotiated()  # without those there is nothing to keep in one piece
assert not h.is_read_only()

# Another connection may have been here before.
want = bytearray(b"".join(h.pread(min(8 << 20, size - at), at) for at in range(0, size, 8 << 20)))


def place():
    """A range: any bytes, whole blocks, or ones that cross the border of a region of 16 MiB."""
    n = rng.choice((1, 511, 512, 4096, 4097, 20000, 65536, 1 << 20))
    at = rng.randrange(size - n + 1)
    kind = rng.randrange(4)
    if kind == 0:
        at, n = at & ~4095, (n + 4095) & ~4095
    elif kind == 1:
        at = (16 << 20) - n // 2
    return min(at, size - n), n


def write(at, n, fua):
    data = rng.randbytes(n)
    h.pwrite(data, at, flags=fua)
    want[at : at + n] = data


def zero(at, n, fua):
    flags = rng.choice((0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO))
    try:
        h.zero(n, at, flags=flags | fua)
    except nbd.Error as e:
        # A server that cannot do it fast says so and has changed nothing.
        assert flags & nbd.CMD_FLAG_FAST_ZERO and e.errno == "ENOTSUP", (flags, e)
        return
    want[at : at + n] = bytes(n)


def trim(at, n, fua):
    h.trim(n, at, flags=fua)
    # The protocol lets a trimmed byte be anything; here whole blocks read as zeroes, and the rest as before or as zeroes.
    got = h.pread(n, at)
    for i in range(n):
        assert got[i] in (0, want[at + i]), f"byte {at + i} after a trim is {got[i]}"
    want[at : at + n] = got
    first, last = (at + 4095) & ~4095, (at + n) & ~4095
    assert last <= first or not any(want[first:last]), f"whole blocks of a trim of {n} at {at} are not zero"


for i in range(count):
    at, n = place()
    fua = rng.choice((0, nbd.CMD_FLAG_FUA))
    rng.choices((write, zero, trim), (6, 2, 2))[0](at, n, fua)
    at, n = place()
    flags = nbd.CMD_FLAG_DF if h.can_df() and rng.randrange(2) else 0
    if rng.randrange(8) == 0:
        h.cache(n, at)
    if rng.randrange(8) == 0:
        h.flush()
    pieces = []
    got = h.pread_structured(n, at, lambda data, off, status, err: pieces.append((off, len(data))), flags=flags)
    assert got == want[at : at + n], f"step {i}: {n} bytes at {at} are not what was written"
    assert not flags or len(pieces) == 1, f"step {i}: DF, and {len(pieces)} pieces"
    # The pieces cover the range, each byte once.
    end = at
    for off, length in sorted(pieces):
        assert off == end, f"step {i}: a piece at {off}, want {end}"
        end += length
    assert end == at + n, f"step {i}: pieces end at {end}, want {at + n}"

h.flush()
for at in range(0, size, 8 << 20):
    n = min(8 << 20, size - at)
    assert h.pread(n, at) == want[at : at + n], f"the export differs behind {at}"
h.shutdown()
print(hashlib.sha256(want).hexdigest())

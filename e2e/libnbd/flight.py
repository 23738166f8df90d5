"""Keeps many requests in flight on several connections to one export. A write that was replied to on one is read on all others at once, and one flush covers them all.

Environment: URI, SIZE (bytes), SEED, CONNECTIONS, REQUESTS (in flight on each), COUNT (writes on each). Prints the SHA-256 of what the export must hold.
"""

import hashlib
import os
import random

import nbd

size, depth, count = (int(os.environ[k]) for k in ("SIZE", "REQUESTS", "COUNT"))
rng = random.Random(int(os.environ["SEED"]))
block = 16384
handles = []
for _ in range(int(os.environ["CONNECTIONS"])):
    h = nbd.NBD()
    h.connect_uri(os.environ["URI"])
    assert h.can_multi_conn()
    handles.append(h)

want = bytearray(size)
busy = set()  # no block is in two requests at once: their order would be anybody's
flights = [{} for _ in handles]
left = [count] * len(handles)


def send(k):
    at = rng.randrange(size // block)
    while at in busy:
        at = rng.randrange(size // block)
    busy.add(at)
    kind = rng.randrange(8)
    if kind == 0:
        data = bytes(block)
        cookie = handles[k].aio_zero(block, at * block, flags=rng.choice((0, nbd.CMD_FLAG_FUA)))
    else:
        data = rng.randbytes(block)
        cookie = handles[k].aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at * block, flags=nbd.CMD_FLAG_FUA if kind == 1 else 0)
    flights[k][cookie] = (at, data)


while any(flights) or any(left):
    for k, h in enumerate(handles):
        while left[k] and len(flights[k]) < depth:
            send(k)
            left[k] -= 1
        if not flights[k]:
            continue
        h.poll(1)
        for cookie in [c for c in flights[k] if h.aio_command_completed(c)]:
            at, data = flights[k].pop(cookie)
            want[at * block : at * block + block] = data
            if rng.randrange(16) == 0:
                other = rng.choice(handles)
                assert other.pread(block, at * block) == data, f"block {at} was replied to, and another connection reads something else"
            busy.discard(at)

handles[0].flush()
for h in handles:
    got = b"".join(h.pread(min(8 << 20, size - at), at) for at in range(0, size, 8 << 20))
    assert got == want, "a connection reads something else"
    h.shutdown()
print(hashlib.sha256(want).hexdigest())

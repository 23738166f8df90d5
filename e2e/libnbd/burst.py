"""Rests, then sends requests of one kind as fast as it may, 64 in flight, and prints as JSON when each was replied to, in seconds since the first was sent.

Environment: URI, COMMAND (read or write), SIZE (bytes of a request), COUNT, REST (seconds).
"""

import json
import os
import time

import nbd

size, count = int(os.environ["SIZE"]), int(os.environ["COUNT"])
h = nbd.NBD()
h.connect_uri(os.environ["URI"])
room = h.get_size() // size
payload = nbd.Buffer.from_bytearray(bytearray(os.urandom(size)))


def send(k):
    if os.environ["COMMAND"] == "write":
        return h.aio_pwrite(payload, k % room * size)
    return h.aio_pread(nbd.Buffer(size), k % room * size)


time.sleep(float(os.environ["REST"]))
flying, sent, replied = set(), 0, []
began = time.monotonic()
while len(replied) < count:
    while sent < count and len(flying) < 64:
        flying.add(send(sent))
        sent += 1
    h.poll(-1)
    for cookie in [c for c in flying if h.aio_command_completed(c)]:
        flying.discard(cookie)
        replied.append(time.monotonic() - began)
h.shutdown()
print(json.dumps(replied))

"""A switch that holds every frame back for a while: between the named interfaces, until it is killed.

    slow_switch.py INTERFACE=MILLISECONDS...

A frame takes as long as the way from its interface to the switch and that from the switch to the other one. For machines whose kernel has no
netem. The interfaces belong to no bridge and their other ends compute checksums themselves. Frames that go the same way keep their order. What the
other side has no room for is lost, as on a real wire.
"""
import heapq
import select
import socket
import sys
import time

OUTGOING = 4  # the kind under which the kernel shows what this socket itself has sent
LONGEST = 65536

delays = {}
for argument in sys.argv[1:]:
    name, milliseconds = argument.split("=")
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    port.bind((name, 0))
    delays[port] = float(milliseconds) / 1000
print("ready", flush=True)
behind = {}  # which port leads to which hardware address
held, count = [], 0
while True:
    wait = max(0.0, held[0][0] - time.monotonic()) if held else None
    for port in select.select(list(delays), [], [], wait)[0]:
        frame, (_, _, kind, _, _) = port.recvfrom(LONGEST)
        if kind != OUTGOING:
            behind[frame[6:12]] = port
            to = [behind[frame[:6]]] if frame[:6] in behind else [other for other in delays if other is not port]
            for other in to:
                count += 1
                heapq.heappush(held, (time.monotonic() + delays[port] + delays[other], count, other, frame))
    while held and held[0][0] <= time.monotonic():
        _, _, port, frame = heapq.heappop(held)
        try:
            port.send(frame)
        except OSError:
            pass

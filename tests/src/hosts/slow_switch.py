"""A switch that holds every frame back for a while: between the named interfaces, until it is killed.

    slow_switch.py MILLISECONDS INTERFACE...

For machines whose kernel has no netem. The interfaces belong to no bridge and their other ends compute checksums themselves.
Frames keep their order. What the other side has no room for is lost, as on a real wire.
"""
import collections
import select
import socket
import sys
import time

OUTGOING = 4  # the kind under which the kernel shows what this socket itself has sent
LONGEST = 65536

delay = float(sys.argv[1]) / 1000
ports = []
for name in sys.argv[2:]:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    port.bind((name, 0))
    ports.append(port)
print("ready", flush=True)
behind = {}  # which port leads to which hardware address
held = collections.deque()
while True:
    wait = max(0.0, held[0][0] - time.monotonic()) if held else None
    for port in select.select(ports, [], [], wait)[0]:
        frame, (_, _, kind, _, _) = port.recvfrom(LONGEST)
        if kind != OUTGOING:
            behind[frame[6:12]] = port
            to = [behind[frame[:6]]] if frame[:6] in behind else [other for other in ports if other is not port]
            held.append((time.monotonic() + delay, to, frame))
    while held and held[0][0] <= time.monotonic():
        _, to, frame = held.popleft()
        for port in to:
            try:
                port.send(frame)
            except OSError:
                pass

#!/usr/bin/env python3
"""The peers of scripts/bench recovery: the same networks under torchrun, and under torchft.

    torchrun ... torch_recovery.py ddp     DistributedDataParallel; a checkpoint every 5 rounds, from which a restart goes on
    torchrun ... torch_recovery.py ft      torchft's Manager, with its defaults

RECOVERY_LOG names a prefix: every process writes `<prefix>.<member>.<pid>`, one line for each event, with the time:
`start`, `ready`, `step NUMBER WORLD`, where a step is a round of both networks. Networks and losses are those of
torch_progan_ddp.py, on the CPU, one thread to a process, random images. It refuses to end by itself: whoever measures kills it.
"""

import math
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torch_progan_ddp as progan

RES, WIDTH, BASE, SHARE = 16, 64, 256, 4
ROUNDS_PER_CHECKPOINT = 5


def networks():
    """Generator and discriminator of a stable phase: the image layers of smaller resolutions take no part."""
    progan.BASE, progan.MAX = BASE, WIDTH
    levels = int(math.log2(RES))
    pair = progan.G(levels), progan.D(levels)
    for net in pair:
        for layer in net.rgb[:-1]:
            layer.requires_grad_(False)
    return pair


def adam(*nets):
    return torch.optim.Adam([p for net in nets for p in net.parameters() if p.requires_grad], 1e-3, (0.0, 0.99), 1e-8)


class Peer:
    """What the two peers have in common. `optimizers` are what a checkpoint holds besides the networks."""

    def __init__(self, member):
        self.log = open(f"{os.environ['RECOVERY_LOG']}.{member}.{os.getpid()}", "w", buffering=1)
        self.say("start")
        torch.set_num_threads(1)
        torch.manual_seed(int(member))
        self.g, self.d = networks()
        self.real = torch.rand(SHARE, 3, RES, RES) * 2 - 1

    def say(self, text):
        self.log.write(f"{time.time():.6f} {text}\n")

    def backward_d(self):
        with torch.no_grad():
            fake = self.run_g(torch.randn(SHARE, self.g.c))
        share = torch.rand(SHARE, 1, 1, 1)
        mix = (self.real + share * (fake - self.real)).requires_grad_(True)
        real, made, mixed = self.run_d(self.real), self.d(fake), self.d(mix)
        norm = torch.autograd.grad(mixed.sum(), mix, create_graph=True)[0].flatten(1).norm(dim=1)
        loss = made.mean() - real.mean() + 10 * (norm - 1).square().mean() + 1e-3 * real.square().mean()
        loss.backward()

    def backward_g(self):
        used = [p for p in self.d.parameters() if p.requires_grad]
        for p in used:
            p.requires_grad_(False)
        (-self.d(self.run_g(torch.randn(SHARE, self.g.c))).mean()).backward()
        for p in used:
            p.requires_grad_(True)

    def state(self):
        return [part.state_dict() for part in (self.g, self.d, *self.optimizers)]

    def load(self, state):
        for part, stored in zip((self.g, self.d, *self.optimizers), state):
            part.load_state_dict(stored)


def ddp():
    peer = Peer(os.environ["GROUP_RANK"])
    dist.init_process_group("gloo")
    peer.run_g, peer.run_d = DistributedDataParallel(peer.g), DistributedDataParallel(peer.d)
    peer.optimizers = adam_g, adam_d = adam(peer.g), adam(peer.d)
    step, path = 0, os.environ["RECOVERY_LOG"] + ".checkpoint"
    if os.path.exists(path):
        stored = torch.load(path)
        peer.load(stored["state"])
        step = stored["step"]
    peer.say("ready")
    while True:
        for optimizer, backward in ((adam_d, peer.backward_d), (adam_g, peer.backward_g)):
            optimizer.zero_grad()
            backward()
            optimizer.step()
        step += 1
        peer.say(f"step {step} {dist.get_world_size()}")
        if dist.get_rank() == 0 and step % ROUNDS_PER_CHECKPOINT == 0:
            torch.save({"state": peer.state(), "step": step}, path + ".part")
            os.replace(path + ".part", path)


def ft():
    """One commit for both networks: a newcomer could not know which of two was due."""
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    replica = os.environ["REPLICA_GROUP_ID"]
    peer = Peer(replica)
    manager = Manager(pg=ProcessGroupGloo(), load_state_dict=peer.load, state_dict=peer.state, min_replica_size=1,
                      replica_id=f"replica{replica}")
    peer.run_g, peer.run_d = DistributedDataParallel(manager, peer.g), DistributedDataParallel(manager, peer.d)
    optimizer = Optimizer(manager, adam(peer.g, peer.d))
    peer.optimizers = [optimizer]
    peer.say("ready")
    while True:
        optimizer.zero_grad()
        peer.backward_d()
        peer.backward_g()
        optimizer.step()
        peer.say(f"step {manager.current_step()} {manager.num_participants()}")


if __name__ == "__main__":
    if sys.argv[1:] == ["parameters"]:
        print(sum(p.numel() for net in networks() for p in net.parameters()))
    else:
        {"ddp": ddp, "ft": ft}[sys.argv[1]]()

#!/usr/bin/env python3
"""The peer of our sum between processes: torch.distributed's all_reduce over Gloo, float32 on loopback.

    WORLD_SIZE=2 RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29400 torch_gloo_allreduce.py BYTES CALLS

Rank 0 prints one JSON line: the median and the fastest of the calls, as the slowest rank saw each. Every call begins
together, after a barrier, like ours.
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

length, calls = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo")
numbers = torch.ones(length // 4)
dist.all_reduce(numbers)
if not bool((numbers == dist.get_world_size()).all()):
    sys.exit("the sum of ones is not the number of ranks")
numbers.zero_()
took = []
for call in range(-3, calls):
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(numbers)
    if call >= 0:
        took.append(time.perf_counter() - began)
slowest = torch.tensor(took, dtype=torch.float64)
dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
times = [seconds * 1e3 for seconds in slowest.tolist()]
if dist.get_rank() == 0:
    print(json.dumps({"world": dist.get_world_size(), "bytes": length, "calls": calls,
                      "median_ms": statistics.median(times), "fastest_ms": min(times)}), flush=True)
dist.destroy_process_group()

"""The peer of scripts/bench: CycleGAN as one would write it in plain PyTorch with DistributedDataParallel.

The same networks, losses and optimizers as ours (Zhu et al., ICCV 2017, least squares, identity, pools of 50), and images in memory.
One process per rank; rank 0 prints one JSON line, where an iteration is one step of both generators and one of both
discriminators:

    torchrun --nproc-per-node=2 scripts/peer/torch_cyclegan_ddp.py --res 64 --batch 2 --width 32 --blocks 6
"""
import argparse, itertools, json, os, random, time
import torch, torch.nn as nn, torch.nn.functional as F
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP


def norm(n):
    return nn.InstanceNorm2d(n)


class Block(nn.Module):
    def __init__(s, n):
        super().__init__()
        s.body = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), norm(n), nn.ReLU(True),
                               nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), norm(n))

    def forward(s, x):
        return x + s.body(x)


def generator(w, blocks):
    up = lambda i, o: [nn.ConvTranspose2d(i, o, 3, 2, 1, 1), norm(o), nn.ReLU(True)]
    down = lambda i, o: [nn.Conv2d(i, o, 3, 2, 1), norm(o), nn.ReLU(True)]
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), norm(w), nn.ReLU(True), *down(w, 2 * w), *down(2 * w, 4 * w),
                         *[Block(4 * w) for _ in range(blocks)], *up(4 * w, 2 * w), *up(2 * w, w),
                         nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh())


def discriminator(w, layers=3):
    net, n = [nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2, True)], w
    for i in range(1, layers + 1):
        o = w * min(2 ** i, 8)
        net += [nn.Conv2d(n, o, 4, 2 if i < layers else 1, 1), norm(o), nn.LeakyReLU(0.2, True)]
        n = o
    return nn.Sequential(*net, nn.Conv2d(n, 1, 4, 1, 1))


class Pool:
    def __init__(s):
        s.kept = []

    def shown(s, images):
        out = []
        for image in images.detach().unsqueeze(1):
            if len(s.kept) < 50:
                s.kept.append(image.clone())
                out.append(image)
            elif random.random() < 0.5:
                i = random.randrange(50)
                out.append(s.kept[i].clone())
                s.kept[i] = image.clone()
            else:
                out.append(image)
        return torch.cat(out)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--res", type=int, default=64)
    p.add_argument("--batch", type=int, default=2, help="global batch")
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--blocks", type=int, default=6)
    p.add_argument("--iters", type=int, default=10)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--amp", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--tf32", action="store_true")
    a = p.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(a.threads)
    torch.manual_seed(rank)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = a.tf32
    if world > 1:
        dist.init_process_group("nccl" if a.device == "cuda" else "gloo")
    nets = [generator(a.width, a.blocks), generator(a.width, a.blocks), discriminator(a.width), discriminator(a.width)]
    for net in nets:
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(m.weight, 0.0, 0.02)
                nn.init.zeros_(m.bias)
    nets = [net.to(a.device) for net in nets]
    # several forwards before one backward: no buffers to broadcast, and the graph does not change
    wrap = (lambda net: DDP(net, broadcast_buffers=False, static_graph=True)) if world > 1 else (lambda net: net)
    g_a, g_b, d_a, d_b = map(torch.compile if a.compile and world == 1 else lambda net: net, map(wrap, nets))
    # another pass of a network of several ranks would be one more for DDP to account for
    of_b, of_a = (d_a, d_b) if world == 1 else nets[2:]
    mixed = lambda: torch.autocast(a.device, torch.bfloat16, enabled=a.amp)
    adam = lambda *some: torch.optim.Adam(itertools.chain(*(net.parameters() for net in some)), 2e-4, (0.5, 0.999))
    of_g, of_d = adam(g_a, g_b), adam(d_a, d_b)
    pools = Pool(), Pool()
    judge = lambda scores, to: F.mse_loss(scores, torch.full_like(scores, to))
    n = a.batch // world
    real_a, real_b = (torch.rand(n, 3, a.res, a.res, device=a.device) * 2 - 1 for _ in range(2))
    times = []
    for it in range(a.warmup + a.iters):
        if it == a.warmup:
            cpu = time.process_time()
        if world > 1:
            dist.barrier()
        if a.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        with mixed():
            fake_b, fake_a = g_a(real_a).float(), g_b(real_b).float()
        for net in nets[2:]:
            net.requires_grad_(False)
        of_g.zero_grad(set_to_none=True)
        with mixed():
            loss = (judge(of_b(fake_b).float(), 1.0) + judge(of_a(fake_a).float(), 1.0)
                    + 10 * F.l1_loss(g_b(fake_b).float(), real_a) + 10 * F.l1_loss(g_a(fake_a).float(), real_b)
                    + 5 * F.l1_loss(g_a(real_b).float(), real_b) + 5 * F.l1_loss(g_b(real_a).float(), real_a))
        loss.backward()
        of_g.step()
        for net in nets[2:]:
            net.requires_grad_(True)
        of_d.zero_grad(set_to_none=True)
        for judged, real, fake, pool in ((d_a, real_b, fake_b, pools[0]), (d_b, real_a, fake_a, pools[1])):
            with mixed():
                scores = judged(real).float(), judged(pool.shown(fake)).float()
            (0.5 * (judge(scores[0], 1.0) + judge(scores[1], 0.0))).backward()
        of_d.step()
        if a.device == "cuda":
            torch.cuda.synchronize()
        if it >= a.warmup:
            times.append(time.perf_counter() - began)
    cpu = (time.process_time() - cpu) / a.iters
    times.sort()
    m = times[len(times) // 2]
    if rank == 0:
        print(json.dumps({"res": a.res, "batch": a.batch, "world": world, "threads": a.threads, "ms_per_iter": round(m * 1e3, 2),
                          "img_per_s": round(a.batch / m, 2), "cpu_ms_per_iter": round(cpu * 1e3, 2)}), flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

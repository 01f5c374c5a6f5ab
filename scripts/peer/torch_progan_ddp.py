"""The peer of scripts/bench: Progressive GAN as one would write it in plain PyTorch with DistributedDataParallel.

The same networks, losses and optimizer as ours (Karras et al., ICLR 2018, WGAN-GP with drift, Adam, moving average of G),
one network per resolution, and images in memory. One process per rank; rank 0 prints one JSON line per resolution, where an
iteration is one step of D and one of G:

    torchrun --nproc-per-node=2 scripts/peer/torch_progan_ddp.py --res 4,8,16,32 --batch 16 --fmap-base 1024 --fmap-max 64

--alpha is the share of the OLD resolution here: 0 is a stable phase.
"""
import argparse, json, math, os, time
import torch, torch.nn as nn, torch.nn.functional as F
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

BASE, MAX = 8192, 512
def nf(s): return min(BASE // (2 ** s), MAX)

class EqConv(nn.Module):
    def __init__(s, i, o, k, p=0, gain=math.sqrt(2)):
        super().__init__(); s.w = nn.Parameter(torch.randn(o, i, k, k)); s.b = nn.Parameter(torch.zeros(o)); s.c = gain / math.sqrt(i * k * k); s.p = p
    def forward(s, x): return F.conv2d(x, s.w * s.c, s.b, padding=s.p)

class EqLinear(nn.Module):
    def __init__(s, i, o, gain=math.sqrt(2), alike=1):  # so many neighbours share one bias
        super().__init__(); s.w = nn.Parameter(torch.randn(o, i)); s.b = nn.Parameter(torch.zeros(o // alike)); s.c = gain / math.sqrt(i); s.alike = alike
    def forward(s, x): return F.linear(x, s.w * s.c, s.b if s.alike == 1 else s.b.repeat_interleave(s.alike))

def pn(x): return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
def lr(x): return F.leaky_relu(x, 0.2)

class G(nn.Module):
    def __init__(s, R):
        super().__init__(); s.R = R
        s.c = nf(1); s.dense = EqLinear(s.c, s.c * 16, math.sqrt(2) / 4, 16); s.c4 = EqConv(s.c, s.c, 3, 1)
        s.blocks = nn.ModuleList([nn.ModuleList([EqConv(nf(r - 2), nf(r - 1), 3, 1), EqConv(nf(r - 1), nf(r - 1), 3, 1)]) for r in range(3, R + 1)])
        s.rgb = nn.ModuleList([EqConv(nf(r - 1), 3, 1, gain=1.0) for r in range(2, R + 1)])
    def forward(s, z, alpha=0.0):
        x = pn(lr(s.dense(pn(z)).view(-1, s.c, 4, 4))); x = pn(lr(s.c4(x))); prev = None
        for a, b in s.blocks:
            prev = x; x = F.interpolate(x, scale_factor=2); x = pn(lr(a(x))); x = pn(lr(b(x)))
        y = s.rgb[-1](x)
        if alpha > 0 and prev is not None: y = (1 - alpha) * y + alpha * F.interpolate(s.rgb[-2](prev), scale_factor=2)
        return y

class D(nn.Module):
    def __init__(s, R):
        super().__init__(); s.R = R
        s.rgb = nn.ModuleList([EqConv(3, nf(r - 1), 1) for r in range(2, R + 1)])
        s.blocks = nn.ModuleList([nn.ModuleList([EqConv(nf(r - 1), nf(r - 1), 3, 1), EqConv(nf(r - 1), nf(r - 2), 3, 1)]) for r in range(3, R + 1)])
        c = nf(1); s.c4 = EqConv(c + 1, c, 3, 1); s.d0 = EqLinear(c * 16, c); s.d1 = EqLinear(c, 1, 1.0)
    def forward(s, img, alpha=0.0):
        x = lr(s.rgb[-1](img))
        for i in range(len(s.blocks) - 1, -1, -1):
            a, b = s.blocks[i]; x = lr(a(x)); x = F.avg_pool2d(lr(b(x)), 2)
            if i == len(s.blocks) - 1 and alpha > 0: x = (1 - alpha) * x + alpha * lr(s.rgb[i](F.avg_pool2d(img, 2)))
        n, c, h, w = x.shape; g = min(4, n)
        t = x.view(g, n // g, c, h, w); t = (t.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).repeat(g).view(n, 1, 1, 1).expand(n, 1, h, w)
        return s.d1(lr(s.d0(lr(s.c4(torch.cat([x, t], 1))).flatten(1))))

def main():
    p = argparse.ArgumentParser(); p.add_argument("--res", default="4,8,16,32"); p.add_argument("--batch", type=int, default=16, help="global batch")
    p.add_argument("--iters", type=int, default=20); p.add_argument("--warmup", type=int, default=3); p.add_argument("--threads", type=int, default=1)
    p.add_argument("--alpha", type=float, default=0.0); p.add_argument("--channels-last", action="store_true"); p.add_argument("--device", default="cpu"); p.add_argument("--amp", action="store_true")
    p.add_argument("--compile", action="store_true"); p.add_argument("--tf32", action="store_true"); p.add_argument("--fmap-base", type=int, default=8192); p.add_argument("--fmap-max", type=int, default=512); a = p.parse_args()
    global BASE, MAX; BASE, MAX = a.fmap_base, a.fmap_max
    world = int(os.environ.get("WORLD_SIZE", "1")); rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(a.threads); torch.manual_seed(rank)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = a.tf32
    if world > 1: dist.init_process_group("nccl" if a.device == "cuda" else "gloo")
    for res in map(int, a.res.split(",")):
        R = int(math.log2(res)); g = G(R).to(a.device); d = D(R).to(a.device); ema = G(R).to(a.device); ema.load_state_dict(g.state_dict())
        if a.channels_last: g = g.to(memory_format=torch.channels_last); d = d.to(memory_format=torch.channels_last)
        gm, dm = g, d
        if a.alpha == 0.0:  # stable phase: the older image layers take no part
            for net in (g, d):
                for l in net.rgb[:-1]: l.requires_grad_(False)
        if world > 1:
            gm = DDP(g); dm = DDP(d)
        if a.compile: gm, dm = torch.compile(gm), torch.compile(dm)
        og = torch.optim.Adam(g.parameters(), 1e-3, (0.0, 0.99), 1e-8); od = torch.optim.Adam(d.parameters(), 1e-3, (0.0, 0.99), 1e-8)
        n = a.batch // world; real = torch.rand(n, 3, res, res, device=a.device) * 2 - 1; ts = []
        ctx = lambda: torch.autocast(a.device, torch.bfloat16, enabled=a.amp)
        for it in range(a.warmup + a.iters):
            if it == a.warmup: cpu = time.process_time()
            if world > 1: dist.barrier()
            if a.device == "cuda": torch.cuda.synchronize()
            t0 = time.perf_counter()
            with torch.no_grad(), ctx(): fake = gm(torch.randn(n, g.c, device=a.device), a.alpha).float()
            u = torch.rand(n, 1, 1, 1, device=a.device); mix = (real + u * (fake - real)).requires_grad_(True)
            od.zero_grad(set_to_none=True)
            once = dm if world == 1 else d  # DDP wants one pass; what is derived twice cannot be compiled
            with ctx(): sr, sf, sm = dm(real, a.alpha).float(), once(fake, a.alpha).float(), d(mix, a.alpha).float()
            gr = torch.autograd.grad(sm.sum(), mix, create_graph=True)[0].flatten(1).norm(dim=1)
            (sf.mean() - sr.mean() + 10 * (gr - 1).square().mean() + 1e-3 * sr.square().mean()).backward(); od.step()
            with torch.no_grad():
                for pe, pg in zip(ema.parameters(), g.parameters()): pe.lerp_(pg, 1e-3)
            og.zero_grad(set_to_none=True); d.requires_grad_(False)
            with ctx(): loss = -once(gm(torch.randn(n, g.c, device=a.device), a.alpha), a.alpha).float().mean()
            loss.backward(); og.step(); d.requires_grad_(True)
            if a.alpha == 0.0:
                for l in d.rgb[:-1]: l.requires_grad_(False)
            if a.device == "cuda": torch.cuda.synchronize()
            if it >= a.warmup: ts.append(time.perf_counter() - t0)
        cpu = (time.process_time() - cpu) / a.iters; ts.sort(); m = ts[len(ts) // 2]
        if rank == 0: print(json.dumps({"res": res, "batch": a.batch, "world": world, "threads": a.threads, "ms_per_iter": round(m * 1e3, 2), "img_per_s": round(a.batch / m, 2), "cpu_ms_per_iter": round(cpu * 1e3, 2)}), flush=True)
    if world > 1: dist.destroy_process_group()
if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The networks of the original repositories, with their names, for tests that exchange weights with them.

    original_networks.py FOLDER...

Each folder is a case. Its case.json says for each network what it is and which files hold its weights:
{"G_A": {"kind": "resnet", ..., "files": [{"path": "a/latest_net_G_A.pth"}, {"path": "b/run_s2_i1.pt", "key": "netG"}]}, ...}.
Every file is loaded as a stranger would: `torch.load(weights_only=True)` or `safetensors`, then `load_state_dict(strict=True)`. Where
inputs.safetensors lies beside it, the outputs go into outputs.safetensors; and networks drawn here, perturbed and saved as their
repositories save them, go into theirs/, their outputs into theirs.safetensors.

Written from what is known of those repositories (names, shapes, order of layers), not from their code.
"""

import copy
import json
import pathlib
import sys

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A residual block; without dropout its convolutions are conv_block.1 and conv_block.5."""

    def __init__(self, width):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        other = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(), *other)

    def forward(self, x):
        return x + self.conv_block(x)


class Resnet(nn.Module):
    """CycleGAN's generator: one list of layers, `model`."""

    def __init__(self, width, blocks):
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for w in (width, 2 * width):
            layers += [nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * w), nn.ReLU()]
        layers += [Block(4 * width) for _ in range(blocks)]
        for w in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(w, w // 2, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.InstanceNorm2d(w // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class Patches(nn.Module):
    """The discriminator of patches: instance norms (CycleGAN), or batch norms, before which there is no bias (pix2pix)."""

    def __init__(self, inputs, width, layers, norm):
        super().__init__()
        batch = norm == "batch"
        norm = nn.BatchNorm2d if batch else nn.InstanceNorm2d
        wide = [width * min(2 ** i, 8) for i in range(layers + 1)]
        sequence = [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            conv = nn.Conv2d(wide[i - 1], wide[i], 4, stride=stride, padding=1, bias=not batch)
            sequence += [conv, norm(wide[i]), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*sequence, nn.Conv2d(wide[-1], 1, 4, padding=1))

    def forward(self, x):
        return self.model(x)


class Pixels(nn.Module):
    """The discriminator of pixels, whose list is called `net`; under batch norm only its first layer has a bias."""

    def __init__(self, inputs, width, norm):
        super().__init__()
        batch = norm == "batch"
        norm = nn.BatchNorm2d if batch else nn.InstanceNorm2d
        self.net = nn.Sequential(
            nn.Conv2d(inputs, width, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 1, bias=not batch), norm(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1, bias=not batch))

    def forward(self, x):
        return self.net(x)


class Skip(nn.Module):
    """One block of the U-Net: a layer down, the block within, a layer up, and what came in beside what comes out."""

    def __init__(self, outer, inner, within=None, outermost=False):
        super().__init__()
        self.outermost = outermost
        inputs = 3 if outermost else outer
        down = nn.Conv2d(inputs, inner, 4, stride=2, padding=1, bias=False)
        up = nn.ConvTranspose2d(inner if within is None else 2 * inner, inputs, 4, stride=2, padding=1, bias=outermost)
        if outermost:
            layers = [down, within, nn.ReLU(), up, nn.Tanh()]
        elif within is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        else:
            layers = [nn.LeakyReLU(0.2), down, nn.BatchNorm2d(inner), within, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Unet(nn.Module):
    """pix2pix' generator without dropout, which has no weights: blocks within blocks."""

    def __init__(self, width, downs):
        super().__init__()
        wide = [width * min(2 ** i, 8) for i in range(downs)]
        block = None
        for i in range(downs - 1, 0, -1):
            block = Skip(wide[i - 1], wide[i], block)
        self.model = Skip(3, width, block, outermost=True)

    def forward(self, x):
        return self.model(x)


class Constrained(nn.Module):
    """The zoo's equalized layer: what its module gives, bias included, times sqrt(2 / fan_in)."""

    def __init__(self, module):
        super().__init__()
        nn.init.zeros_(module.bias)
        self.module = module
        self.by = (2.0 / module.weight[0].numel()) ** 0.5

    def forward(self, x):
        return self.module(x) * self.by


def conv(inputs, outputs, side):
    return Constrained(nn.Conv2d(inputs, outputs, side, padding=side // 2))


def leaky(x):
    return functional.leaky_relu(x, 0.2)


def pixel_norm(x):
    return x * torch.rsqrt((x ** 2).mean(1, keepdim=True) + 1e-8)


class GNet(nn.Module):
    """The zoo's generator, grown to as many scales as `depths`, nothing fading."""

    def __init__(self, latent, depths):
        super().__init__()
        self.formatLayer = Constrained(nn.Linear(latent, 16 * depths[0]))
        self.groupScale0 = nn.ModuleList([conv(depths[0], depths[0], 3)])
        pairs = zip(depths, depths[1:])
        self.scaleLayers = nn.ModuleList(nn.ModuleList([conv(a, b, 3), conv(b, b, 3)]) for a, b in pairs)
        self.toRGBLayers = nn.ModuleList(conv(depth, 3, 1) for depth in depths)

    def forward(self, z):
        x = leaky(self.formatLayer(pixel_norm(z)))
        x = pixel_norm(x.view(len(z), -1, 4, 4))
        x = pixel_norm(leaky(self.groupScale0[0](x)))
        for scale in self.scaleLayers:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            for layer in scale:
                x = pixel_norm(leaky(layer(x)))
        return self.toRGBLayers[-1](x)


class DNet(nn.Module):
    """The zoo's discriminator: groups of four consecutive samples, whose deviation divides by three."""

    def __init__(self, depths):
        super().__init__()
        self.fromRGBLayers = nn.ModuleList(conv(3, depth, 1) for depth in depths)
        pairs = zip(depths, depths[1:])
        self.scaleLayers = nn.ModuleList(nn.ModuleList([conv(b, b, 3), conv(b, a, 3)]) for a, b in pairs)
        first = depths[0]
        self.groupScaleZero = nn.ModuleList([conv(first + 1, first, 3), Constrained(nn.Linear(16 * first, first))])
        self.decisionLayer = Constrained(nn.Linear(first, 1))

    def forward(self, x):
        x = leaky(self.fromRGBLayers[-1](x))
        for scale in reversed(self.scaleLayers):
            for layer in scale:
                x = leaky(layer(x))
            x = functional.avg_pool2d(x, 2)
        groups = x.view(-1, 4, *x.shape[1:])
        deviation = torch.sqrt(groups.var(1, unbiased=True) + 1e-8).mean((1, 2, 3))
        plane = deviation.repeat_interleave(4).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        x = leaky(self.groupScaleZero[0](torch.cat([x, plane], 1)))
        return self.decisionLayer(leaky(self.groupScaleZero[1](x.flatten(1)))).view(-1)


KINDS = {"resnet": Resnet, "patches": Patches, "pixels": Pixels, "unet": Unet, "gnet": GNet, "dnet": DNet}


class Config:
    """The zoo keeps its settings as an object of a class that nobody else has."""


def build(about):
    # left in training mode, as the authors leave theirs: batch norms take the statistics of the batch
    return KINDS[about["kind"]](**{key: value for key, value in about.items() if key not in ("kind", "files", "by_position")})


def load(folder, file):
    path = folder / file["path"]
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state[file["key"]] if "key" in file else state


@torch.no_grad()
def taken_in(folder, case, inputs):
    """Loads what was exported; the outputs, the same from every file."""
    outputs = {}
    for name, about in case.items():
        for file in about["files"]:
            network = build(about)
            network.load_state_dict(load(folder, file), strict=True)
            if name in inputs:
                output = network.double()(inputs[name])
                known = outputs.setdefault(name, output)
                assert torch.equal(known, output), f"{folder}: {name} of {file['path']} gives something else"
    return outputs


@torch.no_grad()
def drawn(about):
    """A network of theirs, every number of which is its own; but where ours has one first bias for each channel, so has the zoo's."""
    network = build(about)
    for name, parameter in network.named_parameters():
        noise = torch.randn_like(parameter)
        if name == "formatLayer.module.bias" and not about["by_position"]:
            noise = noise[::16].repeat_interleave(16)
        # the zoo draws N(0, 1) and scales at run time
        scale = 1.0 if about["kind"] in ("gnet", "dnet") and name.endswith("weight") else 0.1
        parameter.mul_(1.0 - scale).add_(noise * scale)
    return network


@torch.no_grad()
def given_out(folder, case, inputs):
    """Saves networks of theirs as their repositories do; the outputs."""
    theirs = folder / "theirs"
    theirs.mkdir()
    networks = {name: drawn(about) for name, about in case.items()}
    outputs = {name: copy.deepcopy(network).double()(inputs[name]) for name, network in networks.items() if name in inputs}
    states = {name: network.state_dict() for name, network in networks.items()}
    if any(about["kind"] in ("gnet", "dnet") for about in case.values()):
        config = Config()
        config.depthScale0, config.alpha = 8, 0
        torch.save({"config": config, **states}, theirs / "theirs_s2_i9.pt")
        return outputs
    for number, (name, state) in enumerate(states.items()):
        # half of them as releases before 1.6 wrote
        torch.save(state, theirs / f"latest_net_{name}.pth", _use_new_zipfile_serialization=number % 2 == 0)
    return outputs


def main(folders):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    for folder in map(pathlib.Path, folders):
        case = json.loads((folder / "case.json").read_text())
        given = folder / "inputs.safetensors"
        inputs = safetensors.torch.load_file(given) if given.exists() else {}
        inputs = {name: value.double() for name, value in inputs.items()}
        outputs = taken_in(folder, case, inputs)
        if inputs:
            save = safetensors.torch.save_file
            save({name: output.float().contiguous() for name, output in outputs.items()}, folder / "outputs.safetensors")
            theirs = given_out(folder, case, inputs)
            save({name: output.float().contiguous() for name, output in theirs.items()}, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])

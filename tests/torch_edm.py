"""EDM's networks in torch, written from their description (arXiv 2206.00364 appendix F).

Classes, arguments and tensors are called as in EDM's files, so that a pickle of them has the layout
of those; `written` makes one. Run as a script, this writes `edm_numbers.json`.
"""

import json
import math
import pickle
import sys
import types

import numpy as np
import torch
from edm_cases import CASES, NUMBERS, SOURCE, inputs, sample, seeded
from torch import nn
from torch.nn import functional


def _reconstruct_persistent_obj(meta):
    raise AssertionError("ours is never called: the reader under test has its own")


class Kept(nn.Module):
    """A module that remembers its arguments and is pickled as EDM's persistent classes are."""

    def __new__(cls, *args, **kwargs):
        made = super().__new__(cls)
        made.__dict__.update(_init_args=args, _init_kwargs=kwargs)
        return made

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": type(self).__name__,
            "state": self.__dict__,
        }
        return _reconstruct_persistent_obj, (meta,)


def written(net, path, **others):
    """Pickles `net` as the "ema" of a snapshot, with the modules that EDM's pickles name."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    _reconstruct_persistent_obj.__module__ = module.__name__
    package = types.ModuleType("torch_utils")
    package.persistence = module
    names = {"torch_utils": package, module.__name__: module}
    sys.modules.update(names)
    try:
        with open(path, "wb") as file:
            pickle.dump({"ema": net, "dataset_kwargs": {"use_labels": True}, **others}, file)
    finally:
        for name in names:
            del sys.modules[name]
    return path


class Linear(Kept):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class GroupNorm(Kept):
    def __init__(self, num_channels, eps):
        super().__init__()
        self.groups, self.eps = min(32, num_channels // 4), eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Conv2d(Kept):
    """A convolution before or after, or instead of which the image is filtered to another size."""

    def __init__(
        self, in_channels, out_channels, kernel, way="", resample_filter=(1, 1), fused=False
    ):
        super().__init__()
        self.way, self.fused = way, fused
        sizes = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.zeros(sizes)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if kernel else None
        row = torch.tensor(resample_filter, dtype=torch.float32)
        square = (row[:, None] * row[None, :] / row.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", square if way else None)

    def resized(self, x, padding):
        """Filtered by every channel's own copy of the filter, with stride 2."""
        channels = x.shape[1]
        kernel = self.resample_filter.repeat(channels, 1, 1, 1)
        if self.way == "up":
            return functional.conv_transpose2d(
                x, 4 * kernel, stride=2, padding=padding, groups=channels
            )
        return functional.conv2d(x, kernel, stride=2, padding=padding, groups=channels)

    def forward(self, x):
        margin = (self.resample_filter.shape[-1] - 1) // 2 if self.way else 0
        if self.fused:
            assert self.way == "down"
            x = functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + margin)
            return self.resized(x, 0) + self.bias[:, None, None]
        if self.way:
            x = self.resized(x, margin)
        if self.weight is None:
            return x
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class UNetBlock(Kept):
    def __init__(self, cin, cout, emb, way="", attention=False, *, kind):
        super().__init__()
        song = kind["song"]
        eps, taps = (1e-6, kind["filter"]) if song else (1e-5, (1, 1))
        self.song, self.scale = song, math.sqrt(0.5) if song else 1.0
        self.dropout = kind["dropout"]
        # As in EDM, a number of numpy: pickles have these too.
        self.skip_scale = np.sqrt(0.5)
        self.norm0 = GroupNorm(cin, eps)
        self.conv0 = Conv2d(cin, cout, 3, way, taps)
        self.affine = Linear(emb, cout if song else 2 * cout)
        self.norm1 = GroupNorm(cout, eps)
        self.conv1 = Conv2d(cout, cout, 3)
        self.skip = None
        if cin != cout or way:
            self.skip = Conv2d(cin, cout, 1 if cin != cout or song else 0, way, taps)
        self.heads = 0 if not attention else 1 if song else cout // 64
        if self.heads:
            self.norm2 = GroupNorm(cout, eps)
            self.qkv = Conv2d(cout, 3 * cout, 1)
            self.proj = Conv2d(cout, cout, 1)

    def forward(self, x, emb):
        h = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.song:
            h = self.norm1(h + told)
        else:
            gain, shift = told.chunk(2, dim=1)
            h = self.norm1(h) * (1 + gain) + shift
        h = functional.dropout(functional.silu(h), self.dropout, self.training)
        x = (self.conv1(h) + (self.skip(x) if self.skip else x)) * self.scale
        if not self.heads:
            return x
        batch, _, height, width = x.shape
        # Channels are counted head, channel of the head, then query, key and value.
        qkv = self.qkv(self.norm2(x)).reshape(batch * self.heads, -1, 3, height * width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = (q.transpose(1, 2) @ k / math.sqrt(k.shape[1])).softmax(dim=-1)
        h = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return (x + self.proj(h)) * self.scale


class FourierEmbedding(Kept):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2))


def waves(angles):
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def build_levels(
    net,
    side,
    channels,
    base,
    mults,
    blocks,
    attn,
    emb,
    kind,
    encoder="standard",
    decoder="standard",
):
    """Fills `net.enc` and `net.dec`; names say size and place."""
    song, taps = kind["song"], kind["filter"]
    net.sizes, net.blocks = [side >> i for i in range(len(mults))], blocks
    net.encoder, net.decoder = encoder, decoder
    net.enc, net.dec = nn.ModuleDict(), nn.ModuleDict()
    now = base if song else base * mults[0]
    net.enc[f"{side}x{side}_conv"] = Conv2d(channels, now, 3)
    joined, aux = [now], channels
    for level, (size, mult) in enumerate(zip(net.sizes, mults)):
        name = f"{size}x{size}"
        if level:
            net.enc[f"{name}_down"] = UNetBlock(now, now, emb, "down", kind=kind)
            if encoder == "skip":
                net.enc[f"{name}_aux_down"] = Conv2d(aux, aux, 0, "down", taps)
                net.enc[f"{name}_aux_skip"] = Conv2d(aux, now, 1)
            if encoder == "residual":
                net.enc[f"{name}_aux_residual"] = Conv2d(aux, now, 3, "down", taps, True)
                aux = now
            joined.append(now)
        for j in range(blocks):
            args = (now, base * mult, emb, "", size in attn)
            net.enc[f"{name}_block{j}"] = UNetBlock(*args, kind=kind)
            now = base * mult
            joined.append(now)
    for level, (size, mult) in reversed(list(enumerate(zip(net.sizes, mults)))):
        name = f"{size}x{size}"
        if size == net.sizes[-1]:
            net.dec[f"{name}_in0"] = UNetBlock(now, now, emb, "", True, kind=kind)
            net.dec[f"{name}_in1"] = UNetBlock(now, now, emb, kind=kind)
        else:
            net.dec[f"{name}_up"] = UNetBlock(now, now, emb, "up", kind=kind)
        for j in range(blocks + 1):
            attend = size in attn and (j == blocks or not song)
            args = (now + joined.pop(), base * mult, emb, "", attend)
            net.dec[f"{name}_block{j}"] = UNetBlock(*args, kind=kind)
            now = base * mult
        if song and (decoder == "skip" or level == 0):
            if size != net.sizes[-1] and decoder == "skip":
                net.dec[f"{name}_aux_up"] = Conv2d(channels, channels, 0, "up", taps)
            net.dec[f"{name}_aux_norm"] = GroupNorm(now, 1e-6)
            net.dec[f"{name}_aux_conv"] = Conv2d(now, channels, 3)
    return now


def run_levels(net, x, emb):
    """Down and up; the output where there are auxiliary ones, else the last features."""
    aux, h = x, net.enc[f"{net.sizes[0]}x{net.sizes[0]}_conv"](x)
    kept = [h]
    for level, size in enumerate(net.sizes):
        name = f"{size}x{size}"
        if level:
            h = net.enc[f"{name}_down"](h, emb)
            if net.encoder == "skip":
                aux = net.enc[f"{name}_aux_down"](aux)
                h = h + net.enc[f"{name}_aux_skip"](aux)
            if net.encoder == "residual":
                h = aux = (h + net.enc[f"{name}_aux_residual"](aux)) / math.sqrt(2)
            kept.append(h)
        for j in range(net.blocks):
            h = net.enc[f"{name}_block{j}"](h, emb)
            kept.append(h)
    out = None
    for size in reversed(net.sizes):
        name = f"{size}x{size}"
        if size == net.sizes[-1]:
            h = net.dec[f"{name}_in1"](net.dec[f"{name}_in0"](h, emb), emb)
        else:
            h = net.dec[f"{name}_up"](h, emb)
        for j in range(net.blocks + 1):
            h = net.dec[f"{name}_block{j}"](torch.cat([h, kept.pop()], dim=1), emb)
        if f"{name}_aux_norm" in net.dec:
            part = net.dec[f"{name}_aux_conv"](functional.silu(net.dec[f"{name}_aux_norm"](h)))
            out = part if out is None else net.dec[f"{name}_aux_up"](out) + part
    assert not kept
    return h if out is None else out


class SongUNet(Kept):
    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.10,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ):
        super().__init__()
        noise, emb = model_channels * channel_mult_noise, 4 * model_channels
        self.noise = noise
        self.map_noise = FourierEmbedding(noise) if embedding_type == "fourier" else None
        self.map_label = Linear(label_dim, noise) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        kind = {"song": True, "filter": resample_filter, "dropout": dropout}
        build_levels(
            self,
            img_resolution,
            in_channels,
            model_channels,
            channel_mult,
            num_blocks,
            attn_resolutions,
            emb,
            kind,
            encoder_type,
            decoder_type,
        )

    def forward(self, x, time, labels):
        if self.map_noise is None:
            half = self.noise // 2
            emb = waves(time[:, None] * 10000.0 ** (-torch.arange(half) / (half - 1)))
        else:
            emb = waves(time[:, None] * self.map_noise.freqs * 2 * math.pi)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        emb = functional.silu(self.map_layer1(functional.silu(self.map_layer0(emb))))
        return run_levels(self, x, emb)


class DhariwalUNet(Kept):
    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.10,
    ):
        super().__init__()
        emb = 4 * model_channels
        self.noise = model_channels
        self.map_augment = Linear(augment_dim, emb // 4, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(model_channels, emb), Linear(emb, emb)
        self.map_label = Linear(label_dim, emb, bias=False) if label_dim else None
        kind = {"song": False, "filter": (1, 1), "dropout": dropout}
        width = build_levels(
            self,
            img_resolution,
            in_channels,
            model_channels,
            channel_mult,
            num_blocks,
            attn_resolutions,
            emb,
            kind,
        )
        self.out_norm, self.out_conv = GroupNorm(width, 1e-5), Conv2d(width, out_channels, 3)

    def forward(self, x, time, labels):
        half = self.noise // 2
        angles = time[:, None] * 10000.0 ** (-torch.arange(half) / half)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        h = run_levels(self, x, functional.silu(emb))
        return self.out_conv(functional.silu(self.out_norm(h)))


class EDMPrecond(Kept):
    """D(x, sigma) around F (arXiv 2206.00364 eq. 7, table 1)."""

    def __init__(self, img_resolution, img_channels, label_dim=0, model_type="SongUNet", **options):
        super().__init__()
        self.sigma_min, self.sigma_max, self.sigma_data = 0, float("inf"), 0.5
        self.model = globals()[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **options,
        )

    def forward(self, x, sigma, labels=None):
        s, d = sigma[:, None, None, None], self.sigma_data
        total = s**2 + d**2
        f = self.model(x / total.sqrt(), sigma.log() / 4, labels)
        return d**2 / total * x + s * d / total.sqrt() * f


def fill(net):
    """Gives every parameter, and random frequencies, their seeded values."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if not name.endswith("resample_filter"):
            tensor.data = torch.tensor(seeded(name, tuple(tensor.shape)))
    return net.eval()


def network(case):
    """The filled network of a case."""
    return fill(EDMPrecond(**CASES[case]))


def denoised(case, net=None):
    """x0 `[B, H, W, C]` of the case's inputs."""
    x, sigma, classes = inputs(case)
    labels = None
    if classes is not None:  # the null class is a row of zeros
        labels = torch.eye(CASES[case]["label_dim"] + 1)[torch.tensor(classes)][:, :-1]
    with torch.no_grad():
        image = torch.tensor(x).permute(0, 3, 1, 2)
        out = (net or network(case))(image, torch.tensor(sigma), labels)
    return out.permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    found = {}
    for case in CASES:
        tensors = {**dict(network(case).named_parameters()), **dict(network(case).named_buffers())}
        numbers = [float(f"{v:.8g}") for v in sample(denoised(case))]
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        found[case] = {"shapes": shapes, "x0": numbers}
    lines = [f'"{case}":{json.dumps(v, separators=(",", ":"))}' for case, v in found.items()]
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")

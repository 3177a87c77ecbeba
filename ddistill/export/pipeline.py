"""Generates images with the students in this folder; needs only torch, diffusers and this file.

from pipeline import Students

images = Students(".")(batch_size=16)          # [16, H, W, C] uint8
images = Students(".")(labels=[3, 1, 4])       # class-conditional students
"""

import json
from pathlib import Path

import diffusers
import torch


class Students:
    """The students of ddistill.json, each evaluated at its own levels and classes."""

    def __init__(self, folder, device="cpu"):
        folder = Path(folder)
        self.facts = json.loads((folder / "ddistill.json").read_text())
        read = getattr(diffusers, self.facts.get("network_class", "UNet2DModel")).from_pretrained
        self.unets = [read(folder / name).eval().to(device) for name in self.facts["unets"]]
        self.levels = {k: torch.tensor(v, device=device) for k, v in self.facts["levels"].items()}
        vae = self.facts.get("vae")
        read = diffusers.AutoencoderKL.from_pretrained
        self.vae = read(folder / vae).eval().to(device) if vae else None
        self.owners = torch.tensor(self.facts["owners"], device=device)  # [step, class]

    @torch.no_grad()
    def __call__(self, batch_size=1, labels=None, generator=None, noise=None):
        """Generates images [N, H, W, C] uint8; `noise` [N, C, H, W] is drawn by default."""
        f, device = self.facts, self.owners.device
        height, width, channels = f["image_shape"]
        count = len(noise) if noise is not None else batch_size if labels is None else len(labels)
        if noise is None:
            noise = torch.randn(count, channels, height, width, generator=generator).to(device)
        if labels is None:
            labels = torch.arange(count) % self.owners.shape[1]
        labels = torch.as_tensor(labels, device=device)
        z = noise * max(1.0, self.levels["sigma"][-1].item())
        for i in range(len(self.levels["alpha"]) - 1, 0, -1):
            x0 = self.predict(z, i, labels)
            z = self.step(z, x0, i, generator)
        if self.vae is not None:
            shift = self.vae.config.shift_factor or 0.0
            z = self.vae.decode(z / self.vae.config.scaling_factor + shift).sample
        return (z.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def predict(self, z, i, labels):
        """Predicts x0 at level i with the owner of each class, clipped as in the evaluation."""
        f, (a, s, t) = self.facts, (self.levels[k][i] for k in ("alpha", "sigma", "time"))
        x0, data = torch.empty_like(z), f["sigma_data"]
        scale = (s * s + data * data * a * a).rsqrt() if f["prediction"] == "edm" else 1.0
        scale = 1.0 / (a + s) if f["prediction"] == "flow" else scale
        for k, unet in enumerate(self.unets):
            mine = self.owners[i - 1][labels] == k
            if mine.any():
                told = f["conditional"] or "network_class" in f  # DiT always has classes
                known = {"class_labels": labels[mine]} if told else {}
                made = unet(scale * z[mine], t.repeat(int(mine.sum())), **known).sample
                x0[mine] = made[:, : z.shape[1]]  # without the channels of a variance
        if f["prediction"] == "eps":
            x0 = (z - s * x0) / a
        elif f["prediction"] == "v":
            x0 = (a * z - s * x0) / (a * a + s * s)
        elif f["prediction"] == "edm":
            x0 = (data * data * a * z * scale + data * s * x0) * scale
        elif f["prediction"] == "flow":
            x0 = (z - s * x0) / (a + s)
        return x0.clamp(-f["clip"], f["clip"]) if f["clip"] else x0

    def step(self, z, x0, i, generator):
        """Steps to the next level with the predicted noise (DDIM) or with new noise."""
        a, s = self.levels["alpha"], self.levels["sigma"]
        if self.facts["sampler"] == "renoise":
            fresh = torch.randn(z.shape, generator=generator).to(z.device)
            return a[i - 1] * x0 + s[i - 1] * fresh
        return a[i - 1] * x0 + s[i - 1] * (z - a[i] * x0) / s[i]

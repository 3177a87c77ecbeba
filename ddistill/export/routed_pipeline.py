"""A StableDiffusionPipeline with several U-Nets, of which the router of this folder picks one.

from pipeline import RoutedPipeline

pipeline = RoutedPipeline.load(".")
images = pipeline(["a cat", "a red house"], num_inference_steps=4, guidance_scale=0).images

Needs torch, diffusers and transformers. A prompt belongs to a cell of its embeddings, and a
timestep to a range; the student of both predicts. A negative prompt goes with its prompt.
"""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file


class Router:
    """Cells of prompts and ranges of timesteps.

    `facts` is the entry "router" of ddistill.json; `tensors` are those of router.safetensors:
    first_timesteps, and axes with thresholds, or centres with biases, or none of these.
    """

    def __init__(self, facts, tensors):
        self.facts, self.tensors = facts, tensors

    @classmethod
    def load(cls, folder):
        """Opens the router of a folder."""
        folder = Path(folder)
        facts = json.loads((folder / "ddistill.json").read_text())["router"]
        return cls(facts, load_file(folder / "router.safetensors"))

    def cells(self, pooled):
        """[N] cells of embeddings [N, D]."""
        t, pooled = self.tensors, pooled.float().cpu()
        cell = torch.zeros(len(pooled), dtype=torch.long)
        if "axes" in t:
            for axis, thresholds in zip(t["axes"], t["thresholds"]):
                cell = 2 * cell + (pooled @ axis > thresholds[cell])
        if "centres" in t:
            middle = t["centres"].mean(0)
            x, c = pooled - middle, t["centres"] - middle
            cell = (c.square().sum(1) - 2 * x @ c.T - t["biases"]).argmin(1)
        return cell

    def pooled(self, states, ids, end):
        """[N, D] embeddings of texts from states [N, L, D]; `end` is the id of the end token."""
        last = (ids == end).int().argmax(1, keepdim=True)
        place = torch.arange(ids.shape[1], device=ids.device)
        counted = {
            "tokens": (place > 0) & (place <= last),
            "all": (place >= 0).expand(ids.shape),
            "end": place == last,
        }[self.facts["pool"]]
        weights = counted / counted.sum(1, keepdim=True)
        return torch.einsum("nld,nl->nd", states.float(), weights)

    @torch.no_grad()
    def embeddings(self, pipeline, prompt):
        """[N, D] pooled embeddings of one prompt or several, by a pipeline's text encoder."""
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
        options = {"max_length": tokenizer.model_max_length, "truncation": True}
        ids = tokenizer(texts, padding="max_length", return_tensors="pt", **options).input_ids
        ids = ids.to(encoder.device)
        return self.pooled(encoder(ids)[0], ids, tokenizer.eos_token_id)

    def cell_of(self, pipeline, prompt):
        """The cell of one prompt."""
        return int(self.cells(self.embeddings(pipeline, prompt)))

    def students(self, cells, timestep):
        """[N] students of prompts in these cells, at a timestep."""
        range_of = int((self.tensors["first_timesteps"] <= int(timestep)).sum()) - 1
        return max(range_of, 0) * self.facts["cells"] + cells


class RoutedUNet(torch.nn.Module):
    """The U-Nets as one; `cells` holds the cells of the prompts of a call."""

    def __init__(self, unets, router):
        super().__init__()
        self.unets, self.router = torch.nn.ModuleList(unets), router
        self.config, self.cells = unets[0].config, torch.zeros(1, dtype=torch.long)

    @property
    def dtype(self):
        """Of the weights."""
        return self.unets[0].dtype

    @property
    def device(self):
        """Of the weights; pipelines ask any of their networks for it."""
        return self.unets[0].device

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=False, **options):
        """Predicts as `UNet2DConditionModel` does, each row by its student."""
        # With guidance, the rows of the negative prompts come first.
        cells = self.cells.repeat(len(sample) // len(self.cells))
        owners = self.router.students(cells, timestep).to(sample.device)
        out = torch.empty_like(sample)
        for k in owners.unique().tolist():
            mine, states = owners == k, encoder_hidden_states
            given = {n: x[mine] if torch.is_tensor(x) else x for n, x in options.items()}
            out[mine] = self.unets[k](sample[mine], timestep, states[mine], **given).sample
        return (out,)


class RoutedPipeline(StableDiffusionPipeline):
    """The pipeline; `load` opens this folder."""

    @classmethod
    def load(cls, folder, **options):
        """Opens the folder; `options` are those of `from_pretrained`."""
        folder, router = Path(folder), Router.load(folder)
        pipeline = cls.from_pretrained(folder, **options)
        dtype = {"torch_dtype": pipeline.unet.dtype}
        read = UNet2DConditionModel.from_pretrained
        others = [read(folder / name, **dtype) for name in router.facts["students"][1:]]
        pipeline.unet = RoutedUNet([pipeline.unet, *others], router)
        return pipeline

    def encode_prompt(self, prompt, device, num_images_per_prompt, *given, **options):
        """Encodes prompts as the pipeline does, and notes their cells."""
        if prompt is None:
            raise ValueError("The students are chosen by prompt: give prompt=, not embeddings.")
        cells = self.unet.router.cells(self.embeddings(prompt))
        self.unet.cells = cells.repeat_interleave(num_images_per_prompt)
        return super().encode_prompt(prompt, device, num_images_per_prompt, *given, **options)

    def embeddings(self, prompt):
        """[N, D] pooled embeddings of one prompt or several, by which they are routed."""
        return self.unet.router.embeddings(self, prompt)

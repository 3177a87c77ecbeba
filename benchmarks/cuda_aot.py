"""Compiles the train steps of the GPU day for an NVIDIA GPU that need not be there.

    python benchmarks/cuda_aot.py --plugin=FOLDER --stages=teacher,sfddm_n4 --size=full

What compiles is jax's CUDA plugin, without a driver and without NVIDIA's libraries. FOLDER has it:

    pip install --no-deps --target=FOLDER jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION

with the version of the installed jax. A folder apart keeps the plugin out of every other process,
which would look for a GPU at each start. Kernels are not timed, so that XLA takes its default
algorithms; on a GPU the program may differ in that. Prints one JSON object a stage.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

# Before jax is imported, because it looks for plugins then.
sys.path += [word.removeprefix("--plugin=") for word in sys.argv if word.startswith("--plugin=")]

import jax
from gpu_day_stages import SHARES, SIZES, settings
from shapes import arguments, plan_all

from ddistill.runtime.sharding import Layout, make_mesh
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.step import make_step

# One H200 as the driver describes it; an H100 has 80 GB and the rest is equal.
TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 150754820096
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


def gpu() -> list[Any]:
    """One GPU that is not there."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
    )
    return list(described.devices[:1])


def programs(size: str, stages: list[str]) -> Iterator[Mapping[str, Any]]:
    """Compiles the steps of stages of the GPU day; yields what their programs need, in bytes."""
    made = settings(SIZES[size], "", 10, dict.fromkeys(SHARES, 1000))
    plans, dataset = plan_all(made, lambda _, stage: stage)
    for name in stages:
        layout = Layout(make_mesh((1, 1, 1), gpu()), plans[name].settings.students.count, "vmap")
        step = make_step(step_settings(plans[name], layout, dataset.hflip))
        begun = time.perf_counter()
        lowered = Chunk(step, 1, False, layout).lower(
            *arguments(plans[name], plans, dataset, layout)
        )
        compiled = lowered.compile()
        found = compiled.memory_analysis()
        yield {
            "stage": name,
            "device": layout.mesh.devices.flat[0].device_kind,
            "arguments": found.argument_size_in_bytes,
            "temporary": found.temp_size_in_bytes,
            "aliased": found.alias_size_in_bytes,
            "kernels": compiled.as_text().count("kind=kInput")
            + compiled.as_text().count("kind=kLoop"),
            "convolutions": compiled.as_text().count("__cudnn$conv"),
            "seconds": round(time.perf_counter() - begun, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plugin", help="folder of the plugin, as --plugin=FOLDER")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    trained = [name for name, share in SHARES.items() if share.calls]
    parser.add_argument("--stages", default=",".join(trained))
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    for found in programs(args.size, args.stages.split(",")):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

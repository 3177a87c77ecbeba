"""Students written for others: diffusers, StableHLO, safetensors.

python -m ddistill.export --to=diffusers RUN OUT
"""

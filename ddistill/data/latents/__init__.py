"""Sets of latents and token ids: shards of safetensors, their writer and their reader.

A set is a folder that `ddistill data latents` makes of captioned images and a pipeline:

    dataset.json                        what was made, of what, by which networks; digests
    train-00000-of-00012.safetensors    moments, tokens, captions of a range of the rows
    null.safetensors                    tokens of the empty text
    problems.txt                        one line for everything that is not in the set
"""

"""`flashdmd plan`: operations, memory, disk, time and cost of a distillation, counted without a GPU or a download.

`meta` runs networks without data, `counting` counts the parts of a training step on one picture, `gpus` lists devices,
`planning` adds up the parts of a recipe, `fitting` chooses what fits a device.
"""

"""The published networks that score pictures, built on open_clip, transformers and clean-fid, from their own files.

Each is a plain module or class on tensors: pictures (B, 3, H, W) uint8 and prompts in, numbers (B,) or features (B, D)
out. `weights` finds their files.
"""

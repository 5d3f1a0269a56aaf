"""Networks that stand beside a denoiser: a frozen SAM encoder, and the heads of discriminators."""

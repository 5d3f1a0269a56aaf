"""Networks beside the denoiser: a frozen SAM image encoder and discriminator heads."""

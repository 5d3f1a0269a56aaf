"""flashdmd: few-step distillation of diffusion models (Flash-DMD, arXiv 2511.20549)."""

__version__ = "0.1.0"

"""Model families: the protocols that training, sampling and evaluation use, and one folder per family."""

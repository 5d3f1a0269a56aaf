"""Model families: what training, sampling and evaluation ask of a model, and one folder for each family."""

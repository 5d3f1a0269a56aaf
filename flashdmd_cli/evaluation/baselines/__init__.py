"""Other authors' few-step models as presets: which files, which scheduler, which timesteps, which guidance."""

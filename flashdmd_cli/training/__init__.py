"""Training of students (stage 1, stage 2) and of reward models."""

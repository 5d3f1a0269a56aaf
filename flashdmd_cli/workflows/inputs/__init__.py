"""Finds and loads the inputs that a user names: teachers, students, reward models, data."""

"""Draws pictures from students and teachers, measures them, and compares the results."""

"""Draws pictures from students and teachers, measures them, and puts the figures side by side."""

"""Searches and trainings from their configuration to what their folder holds; the part that knows Accelerate."""

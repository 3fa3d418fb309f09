"""Helpers for all packages: random streams, module modes, tensors, private PyTorch names, and plain pickles."""

"""The clinic for PyTorch: how a ``torch.nn.Module`` is looked at, repaired, and left as it was."""

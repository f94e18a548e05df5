"""A script that torchrun starts is no module to look for examples in."""

collect_ignore = ["across_processes.py"]

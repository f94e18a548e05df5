"""The models of the zoo are imported by tests/clinic/test_zoo.py and benchmarks/clinic_zoo.py; they are no tests."""

collect_ignore_glob = ["*.py"]

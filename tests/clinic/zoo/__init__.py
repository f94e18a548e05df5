"""Models with one seeded defect each, and models with none, for the audit to tell apart."""

from __future__ import annotations

from . import keras_defects, keras_healthy, torch_defects, torch_defects_use, torch_healthy, torch_healthy_nets
from ._case import Case, Entry

__all__ = ["DEFECTS", "HEALTHY", "Case", "Entry"]

DEFECTS: tuple[Entry, ...] = (*torch_defects.ENTRIES, *torch_defects_use.ENTRIES, *keras_defects.ENTRIES)
HEALTHY: tuple[Entry, ...] = (*torch_healthy.ENTRIES, *torch_healthy_nets.ENTRIES, *keras_healthy.ENTRIES)

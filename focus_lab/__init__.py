"""Experiments and ablations for Focus-DETR, with AP, cost and uncertainty side by side."""

__version__ = "0.1.0"

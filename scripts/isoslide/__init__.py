"""Isoslide: whole-slide images to task models whose predictions hold across scanners."""

__version__ = "0.1.0"

"""Whole disaster-recovery exercises on real servers."""

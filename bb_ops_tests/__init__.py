"""Tests. Real programs, real servers, nothing patched."""

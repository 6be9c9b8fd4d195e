"""Bring a backup back, always beside what exists."""

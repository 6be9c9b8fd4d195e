"""Copies of backups in another region, re-hashed where they arrive."""

"""Restore what others made: dumps and base backups, known by their content."""

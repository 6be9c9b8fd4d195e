"""Bring one table back as of a moment, beside what lives."""

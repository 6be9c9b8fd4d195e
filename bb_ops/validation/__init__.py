"""Prove that a backup comes back, by bringing it back."""

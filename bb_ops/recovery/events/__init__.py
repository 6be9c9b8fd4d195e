"""Find the moment: what the archived WAL says of what was destroyed, and when."""

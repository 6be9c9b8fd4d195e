"""Take a backup and commit it."""

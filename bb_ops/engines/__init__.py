"""Ways to take a backup of a server."""

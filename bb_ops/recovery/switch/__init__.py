"""Let a proven copy take the place of a live cluster, or everything stays as it was."""

"""Parts against the real servers that they are made for."""

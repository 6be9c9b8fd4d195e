"""Bytes in a place: one contract, a directory and an S3 bucket behind it, and sealed objects over both."""

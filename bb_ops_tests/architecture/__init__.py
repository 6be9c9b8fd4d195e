"""The house itself: who may import, read and name what."""

"""How long work tells that it goes on."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called with a stage, the bytes done, and the bytes in all where known."""

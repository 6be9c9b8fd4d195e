"""bb_ops: the operations system of BookedBarber V2. Nothing is green that was not measured."""

__version__ = "0.1.0"

"""What tests build on: real clusters, real commands, rooms of their own."""

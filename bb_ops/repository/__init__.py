"""The repository format: what a backup is once it is stored. The only package that knows keys."""

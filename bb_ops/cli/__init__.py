"""The command line: the same work as the assets, without Dagster."""

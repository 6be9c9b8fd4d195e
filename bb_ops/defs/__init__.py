"""The Dagster edge: assets, checks, jobs, schedules and sensors, a few lines each over the domains."""

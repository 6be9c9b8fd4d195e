"""The embedded demo world: PostgreSQL, two S3 "regions" and a small booking application with its traffic.

Everything here is for demonstration and tests. No production module imports it.
"""

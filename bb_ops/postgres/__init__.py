"""PostgreSQL's own notions: positions, connections, the replication protocol, servers. No policy."""

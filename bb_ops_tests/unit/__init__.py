"""Pure rules, and small parts on real files."""

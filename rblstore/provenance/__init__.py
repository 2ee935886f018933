"""What is said about identities and behaviors: licences, sources, lineage."""

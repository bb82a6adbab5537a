"""What is measured: speed beside peers, and searches on real text."""

"""Everything of a person that is drawn at random."""

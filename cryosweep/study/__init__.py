"""What belongs to a study as a whole: the comparison of its runs and the report."""

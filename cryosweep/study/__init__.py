"""What is above one job: the store its stages share, the sweep it belongs to, the comparison of jobs."""

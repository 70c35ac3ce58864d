"""The targets that the search knows."""

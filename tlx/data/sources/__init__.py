"""Where a data set comes from: one file for each kind of source."""

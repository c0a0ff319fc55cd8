"""Named configurations; the first comment line of each file says what it is."""

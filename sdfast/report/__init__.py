"""What a person looks at: one HTML file that says how a run or a study went, without a network or a server."""

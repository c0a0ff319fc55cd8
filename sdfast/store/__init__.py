"""What a run keeps: durable artefacts that are known by content, and rows that are written over several tries."""

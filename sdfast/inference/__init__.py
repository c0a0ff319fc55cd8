"""A run's models on new data: classes, features, and how much a simple classifier makes of the features."""

"""The fine-tuning baselines of the paper's Table 1: what holds a model near its start, or makes it smooth."""

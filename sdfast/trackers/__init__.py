"""Trackers: TensorBoard, Weights & Biases, MLflow and trackio are told what `metrics.jsonl` is told."""

"""Training: `for step in train(run)`. `cost` and `schedule` are free of torch."""

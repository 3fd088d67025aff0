"""What a stage needs before it runs (hosts, hours, bytes, memory), and why a training run does not learn."""

"""What makes a run of the learning core: DeepSpeed engine, loop, checkpoints, launch, watch, resolution."""

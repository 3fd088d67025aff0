"""What a stage needs before it runs: hosts, hours, bytes and memory for a given number of images."""

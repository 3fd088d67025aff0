"""What runs in a checkout, seen from another terminal: each run that holds a folder, and how far it is."""

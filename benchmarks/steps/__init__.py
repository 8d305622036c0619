"""What `train_step.py` measures: points (what), plans (which), rows (how a model is set up), measure and cpu (the clocks), pool."""

"""The training step: batches, rewards, experience, the learner, checkpoints, monitors."""

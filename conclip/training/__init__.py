"""Training: batches, rewards, experience, the learner, checkpoints and monitors."""

"""How fast conclip is, against a bare engine, a bare forward and backward pass, and TRL."""

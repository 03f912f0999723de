"""No test needs the network, and none writes to a terminal: libraries are told so before any of them is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)

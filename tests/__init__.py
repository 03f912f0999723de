"""No test needs the network: libraries are told so before any of them is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

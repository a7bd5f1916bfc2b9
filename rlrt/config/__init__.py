"""From a composed Hydra config to typed, checked settings. Nothing is built here."""

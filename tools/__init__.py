"""Programs that build parts of this repository; run from a clone, never installed."""

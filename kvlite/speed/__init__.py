"""The time of a run: start-up, prompts, decoding beside the device's own limits, and its drift."""

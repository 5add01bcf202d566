"""Where the time of a run goes: start-up, prompts, decoding beside the device's own limits, and its drift."""

"""A conversation on one row of the engine: turns, saved sessions, slash commands and the terminal."""

"""The one generation loop: ids in, tokens out. Knows no text."""

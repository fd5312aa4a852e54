"""Text: documents, dialogues and worked tasks become arrays of token ids. Imports no torch."""

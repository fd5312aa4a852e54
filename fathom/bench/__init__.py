"""Speed, alone and beside peer libraries: same weights, data, rows and tokens, all cores for each side in turn."""

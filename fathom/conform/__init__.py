"""What clients need of an OpenAI-compatible server, asked of any that has a URL. Knows nothing of Fathom's own."""

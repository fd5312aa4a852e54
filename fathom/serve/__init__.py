"""An OpenAI-compatible server on the engine: schema, loop, stream, app."""

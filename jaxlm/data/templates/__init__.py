"""Chat templates: conversations as tokens, with the assistant's part marked."""

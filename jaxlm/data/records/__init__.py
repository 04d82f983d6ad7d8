"""Records of JSON as examples: conversations, preferences, prompts."""

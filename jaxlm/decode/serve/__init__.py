"""Many requests at once: slots that rows come to and leave, prefixes that they share."""

"""From raw text to batches. Nothing here imports jax, and importing this package loads nothing.

sources      documents from a corpus name, a file, a directory, a glob (local or remote)
curate       sources -> a directory of clean documents, with a reason for each that is gone
synthetic    sources whose entropy or preferences are known exactly
tokenizers   bytes, sentencepiece, byte-level BPE, WordPiece, tiktoken, HF files
tokenized    pre-tokenised ArrayRecord shards with a manifest, and a run's cache of them
pack         documents -> rows, two packers
corrupt      rows with tokens hidden, texts with holes, middles moved to the end
pretraining  rows -> batches of text: a stateless function of (seed, step)
records      JSON objects and Parquet rows -> batches of conversations, preferences, prompts
templates    chat templates: conversations as tokens, with the assistant's part marked
kinds        the kinds of data that a run may read, other than text
tally        counts of what was read, cut and left out
"""

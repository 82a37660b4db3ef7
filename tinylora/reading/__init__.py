"""Data on a volunteer's disk: files to rows, rows to examples, examples to tokens, and what is found on the way."""

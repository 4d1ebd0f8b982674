"""Private texts word by word: words, a closed public vocabulary, the mechanisms that draw from it."""

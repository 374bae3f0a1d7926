"""The words of captions: tokens, vocabularies and word vectors."""

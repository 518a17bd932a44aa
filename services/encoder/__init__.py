"""The vision encoder: from the bytes of media to patch embeddings."""

"""How the gateway reaches encoders and decoders: which there are, which are well, and which one takes a call."""

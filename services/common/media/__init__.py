"""What happens to media before the model: rules, plans and headers. No torch; used by the gateway and the encoder."""

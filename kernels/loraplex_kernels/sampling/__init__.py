"""From logits to tokens, on the device and without waiting for it. See README.md."""

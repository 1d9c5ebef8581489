"""RMS norm: of hidden states, with the residual added first, and of the heads of q and k. See README.md."""

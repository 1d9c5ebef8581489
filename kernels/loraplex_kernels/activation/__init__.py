"""SiLU of the gate times up. See README.md."""

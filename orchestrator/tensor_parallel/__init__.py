"""One language model over several devices: cut by heads and columns, exchanged every half layer (after TPI-LLM)."""

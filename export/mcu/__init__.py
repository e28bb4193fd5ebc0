"""An int8 network becomes small, exact C for a microcontroller, proven on simulated Cortex-M."""

//! The machine: cores, memory, clock.

//! Front-ends: what initiators see of our volumes.
//!
//! Each front-end maps its protocol's sessions and commands to I/Os on bdev channels and knows nothing of what is
//! behind them. `nvmf` is NVMe over Fabrics.

pub mod nvmf;

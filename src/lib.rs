//! Lockstep: a polled-mode storage target that keeps the disks of two nodes in step.
//!
//! The rooms of the house, dependencies pointing downwards only:
//! `control` → `target` → `replication` → `bdev` → `nvme` / `reactor` → `env`.

pub mod bdev;
pub mod control;
pub mod env;
pub mod nvme;
pub mod reactor;
pub mod replication;
pub mod target;

//! Deliberate mistakes in the protocol, one at a time, that show whether the simulator would notice them. Outside of the
//! feature `simulation` none can be active: [`active`] is a constant, and what it guards is not compiled.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    AckAppliedOnReceipt,
    AckReceivedAtOnce,
    AckLocalErrors,
    AbortDropsLayers,
    AnswerBeforeWrite,
    CommitBeforeRecord,
    CommitKeepsOverlay,
    ConsistentBeforeSynced,
    CopySkipsPieces,
    CopyEndsEarly,
    DropOnPrepare,
    DropZeroes,
    FenceIgnored,
    ForgetDirtyAlone,
    ForgetDirtyOnLoss,
    ForgetPins,
    GenerationIgnored,
    GenerationNotRaised,
    NeverFreeze,
    NoLockAtPrimary,
    NoLockAtSecondary,
    NoSecondLook,
    PreserveForLaterEpoch,
    ReadIgnoresChanges,
    RetryForgotten,
    RollBackKeepsWaiting,
    SkipPreserve,
}

#[cfg(feature = "simulation")]
pub const ALL: &[Mutation] = &[
    Mutation::AckAppliedOnReceipt,
    Mutation::AckReceivedAtOnce,
    Mutation::AckLocalErrors,
    Mutation::AbortDropsLayers,
    Mutation::AnswerBeforeWrite,
    Mutation::CommitBeforeRecord,
    Mutation::CommitKeepsOverlay,
    Mutation::ConsistentBeforeSynced,
    Mutation::CopySkipsPieces,
    Mutation::CopyEndsEarly,
    Mutation::DropOnPrepare,
    Mutation::DropZeroes,
    Mutation::FenceIgnored,
    Mutation::ForgetDirtyAlone,
    Mutation::ForgetDirtyOnLoss,
    Mutation::ForgetPins,
    Mutation::GenerationIgnored,
    Mutation::GenerationNotRaised,
    Mutation::NeverFreeze,
    Mutation::NoLockAtPrimary,
    Mutation::NoLockAtSecondary,
    Mutation::NoSecondLook,
    Mutation::PreserveForLaterEpoch,
    Mutation::ReadIgnoresChanges,
    Mutation::RetryForgotten,
    Mutation::RollBackKeepsWaiting,
    Mutation::SkipPreserve,
];

#[cfg(feature = "simulation")]
mod switch {
    use super::Mutation;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Switches a mutation on for the calling thread, or all off.
    pub fn set(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
    }

    pub fn active(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }
}

#[cfg(feature = "simulation")]
pub use switch::{active, set};

#[cfg(not(feature = "simulation"))]
pub const fn active(_: Mutation) -> bool {
    false
}

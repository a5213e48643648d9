//! Deliberate mistakes in the protocol, one at a time, that show whether the simulator would notice them. Outside of the
//! feature `simulation` none can be active: [`active`] is a constant, and what it guards is not compiled.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    AbortDropsLayers,
    AckAppliedOnReceipt,
    AckLocalErrors,
    AckReceivedAtOnce,
    AnswerBeforeWrite,
    CommitBeforeRecord,
    CommitKeepsOverlay,
    ConsistentBeforeSynced,
    CopyEndsEarly,
    CopySkipsPieces,
    CutBeforeCaughtUp,
    DrainIgnoresPins,
    DrainUnflushed,
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
    NoRetryOfRecord,
    NoSecondLook,
    PreserveForLaterEpoch,
    ReadIgnoresChanges,
    RetryForgotten,
    RollBackKeepsWaiting,
    SkipPreserve,
    SlotLostWithFailure,
    SyncUnflushed,
}

#[cfg(feature = "simulation")]
pub const ALL: &[Mutation] = &[
    Mutation::AbortDropsLayers,
    Mutation::AckAppliedOnReceipt,
    Mutation::AckLocalErrors,
    Mutation::AckReceivedAtOnce,
    Mutation::AnswerBeforeWrite,
    Mutation::CommitBeforeRecord,
    Mutation::CommitKeepsOverlay,
    Mutation::ConsistentBeforeSynced,
    Mutation::CopyEndsEarly,
    Mutation::CopySkipsPieces,
    Mutation::CutBeforeCaughtUp,
    Mutation::DrainIgnoresPins,
    Mutation::DrainUnflushed,
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
    Mutation::NoRetryOfRecord,
    Mutation::NoSecondLook,
    Mutation::PreserveForLaterEpoch,
    Mutation::ReadIgnoresChanges,
    Mutation::RetryForgotten,
    Mutation::RollBackKeepsWaiting,
    Mutation::SkipPreserve,
    Mutation::SlotLostWithFailure,
    Mutation::SyncUnflushed,
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

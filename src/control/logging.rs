//! The log: SPDK's levels and flags over `tracing`.
//!
//! A flag is a room of the house (`bdev`, `replication`, …); setting it shows everything that room says,
//! whatever the level.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// The rooms that can be listened to one by one.
pub const FLAGS: &[&str] = &["bdev", "control", "env", "nvme", "reactor", "replication", "target"];

super::params::choice! {
    /// SPDK's levels.
    pub enum Level {
        /// Something failed.
        Error = "ERROR",
        /// Something is wrong, and the node goes on.
        Warning = "WARNING",
        /// Something worth knowing happened.
        Notice = "NOTICE",
        /// Each connection and each step.
        Info = "INFO",
        /// Everything.
        Debug = "DEBUG",
    }
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Level::Error => LevelFilter::ERROR,
            Level::Warning => LevelFilter::WARN,
            Level::Notice => LevelFilter::INFO,
            Level::Info => LevelFilter::DEBUG,
            Level::Debug => LevelFilter::TRACE,
        }
    }
}

struct Settings {
    level: Level,
    flags: BTreeMap<&'static str, bool>,
}

impl Settings {
    fn targets(&self) -> Targets {
        let raised = self.flags.iter().filter(|(_, set)| **set);
        Targets::new()
            .with_default(self.level.filter())
            .with_targets(raised.map(|(flag, _)| (format!("lockstep::{flag}"), LevelFilter::TRACE)))
    }
}

/// The log's settings, and the way to change them while it runs.
pub struct Log {
    settings: Mutex<Settings>,
    /// Puts new settings into effect.
    apply: Box<dyn Fn(Targets) + Send + Sync>,
}

impl Log {
    /// Settings that something else puts into effect; the tests have no log.
    fn with_apply(apply: Box<dyn Fn(Targets) + Send + Sync>) -> Log {
        let settings =
            Settings { level: Level::Notice, flags: FLAGS.iter().map(|flag| (*flag, false)).collect() };
        Log { settings: Mutex::new(settings), apply }
    }

    /// Settings for a process whose log is somebody else's, such as a test's.
    pub fn detached() -> Log {
        Log::with_apply(Box::new(|_| {}))
    }

    /// Starts the process's log on standard error. A second one in a process changes nothing that is seen.
    pub fn start() -> Log {
        let initial = Log::detached().lock().targets();
        let (filter, handle) = reload::Layer::new(initial);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(true);
        // Fails only where a log has been started before, and then that one is in effect.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        // Fails only where the subscriber is gone, that is, when nobody reads the log any more.
        Log::with_apply(Box::new(move |targets| drop(handle.reload(targets))))
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present level.
    pub fn level(&self) -> Level {
        self.lock().level
    }

    /// Changes the level.
    pub fn set_level(&self, level: Level) {
        let mut settings = self.lock();
        settings.level = level;
        (self.apply)(settings.targets());
    }

    /// Every flag and whether it is set.
    pub fn flags(&self) -> BTreeMap<&'static str, bool> {
        self.lock().flags.clone()
    }

    /// Sets or clears one flag, or every one with `all`; false if there is no such flag.
    pub fn set_flag(&self, flag: &str, on: bool) -> bool {
        let mut settings = self.lock();
        let mut found = false;
        for (name, set) in &mut settings.flags {
            if flag == "all" || flag == *name {
                *set = on;
                found = true;
            }
        }
        (self.apply)(settings.targets());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_lets_one_room_say_everything() {
        let log = Log::detached();
        assert!(log.set_flag("bdev", true));
        let targets = log.lock().targets();
        assert!(targets.would_enable("lockstep::bdev::ram", &tracing::Level::TRACE));
        assert!(!targets.would_enable("lockstep::target::nvmf", &tracing::Level::DEBUG));
        assert!(targets.would_enable("lockstep::target::nvmf", &tracing::Level::INFO));
    }

    #[test]
    fn all_is_every_flag_and_an_unknown_one_is_refused() {
        let log = Log::detached();
        assert!(log.set_flag("all", true));
        assert!(log.flags().values().all(|set| *set));
        assert!(!log.set_flag("kitchen", true));
    }

    #[test]
    fn the_level_reads_back_as_it_was_set() {
        let log = Log::detached();
        log.set_level(Level::Debug);
        assert_eq!(log.level(), Level::Debug);
        assert!(log.lock().targets().would_enable("lockstep::env", &tracing::Level::TRACE));
    }
}

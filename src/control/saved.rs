//! The configuration as the calls that would build it again, for `framework_get_config`.
//!
//! Every method that creates something records its own call, completed with what the node chose (names,
//! identifiers); every method that removes something forgets it. Calls keep the order they were made in, so
//! what a call needs stands before it. A call that builds on an object of a later subsystem (a passthru on a
//! replicated volume, say) is listed with that subsystem: loaders go through subsystems in order.

use serde::Serialize;
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A part of the configuration, in the order of dependence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    /// Block devices.
    Bdev,
    /// Replication groups.
    Replication,
    /// The NVMe-oF target.
    Nvmf,
}

impl Subsystem {
    /// All of them, dependencies first.
    pub const ALL: [Subsystem; 3] = [Subsystem::Bdev, Subsystem::Replication, Subsystem::Nvmf];

    /// Its name in a configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Subsystem::Bdev => "bdev",
            Subsystem::Replication => "replication",
            Subsystem::Nvmf => "nvmf",
        }
    }

    /// The subsystem of this name.
    pub fn by_name(name: &str) -> Option<Subsystem> {
        Subsystem::ALL.into_iter().find(|subsystem| subsystem.name() == name)
    }

    /// What must be configured before it.
    pub fn depends_on(self) -> &'static [&'static str] {
        match self {
            Subsystem::Bdev => &[],
            Subsystem::Replication => &["bdev"],
            Subsystem::Nvmf => &["bdev", "replication"],
        }
    }
}

/// What a recorded call is about: `Kind:name`, unique.
pub type Key = String;

struct Call {
    subsystem: Subsystem,
    key: Key,
    method: &'static str,
    params: Value,
}

/// The recorded calls.
#[derive(Default)]
pub struct SavedConfig {
    calls: Mutex<Vec<Call>>,
}

impl SavedConfig {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        // Each change is one push or retain: whole whatever panicked.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the call that makes `key`, in the place of an earlier one. `base` is the key of what it builds
    /// on, if anything. Members that are null are left out.
    pub fn record(
        &self,
        subsystem: Subsystem,
        key: Key,
        base: Option<&Key>,
        method: &'static str,
        params: &impl Serialize,
    ) {
        let mut params = serde_json::to_value(params).unwrap_or(Value::Null);
        drop_nulls(&mut params);
        let mut calls = self.lock();
        let subsystem = calls
            .iter()
            .find(|call| Some(&call.key) == base)
            .map_or(subsystem, |below| below.subsystem.max(subsystem));
        let call = Call { subsystem, key, method, params };
        match calls.iter_mut().find(|earlier| earlier.key == call.key) {
            Some(earlier) => *earlier = call,
            None => calls.push(call),
        }
    }

    /// Forgets every call whose key satisfies `gone`.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        self.lock().retain(|call| !gone(&call.key));
    }

    /// Changes the parameters of the call that made `key`.
    pub fn amend(&self, key: &str, change: impl FnOnce(&mut Value)) {
        if let Some(call) = self.lock().iter_mut().find(|call| call.key == key) {
            change(&mut call.params);
        }
    }

    /// The calls of one subsystem, in the shape of a configuration file.
    pub fn dump(&self, subsystem: Subsystem) -> Vec<Value> {
        self.lock()
            .iter()
            .filter(|call| call.subsystem == subsystem)
            .map(|call| json!({"method": call.method, "params": call.params}))
            .collect()
    }
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(saved: &SavedConfig, subsystem: Subsystem, key: &str, base: Option<&str>) {
        saved.record(
            subsystem,
            key.into(),
            base.map(Key::from).as_ref(),
            "m",
            &json!({"key": key, "none": null}),
        );
    }

    fn keys(saved: &SavedConfig, subsystem: Subsystem) -> Vec<String> {
        saved.dump(subsystem).iter().map(|call| call["params"]["key"].as_str().unwrap().to_string()).collect()
    }

    #[test]
    fn calls_keep_their_order_and_a_repeated_one_its_place() {
        let saved = SavedConfig::default();
        for key in ["b", "a", "b"] {
            record(&saved, Subsystem::Bdev, key, None);
        }
        assert_eq!(keys(&saved, Subsystem::Bdev), ["b", "a"]);
        saved.forget(|key| key == "b");
        assert_eq!(keys(&saved, Subsystem::Bdev), ["a"]);
        assert_eq!(saved.dump(Subsystem::Bdev)[0]["params"], json!({"key": "a"}));
    }

    #[test]
    fn a_call_on_top_of_a_later_subsystem_is_listed_with_it() {
        let saved = SavedConfig::default();
        record(&saved, Subsystem::Replication, "volume", None);
        record(&saved, Subsystem::Bdev, "passthru", Some("volume"));
        record(&saved, Subsystem::Bdev, "delay", Some("passthru"));
        assert!(keys(&saved, Subsystem::Bdev).is_empty());
        assert_eq!(keys(&saved, Subsystem::Replication), ["volume", "passthru", "delay"]);
    }

    #[test]
    fn subsystems_are_listed_after_what_they_depend_on() {
        for (index, subsystem) in Subsystem::ALL.into_iter().enumerate() {
            for name in subsystem.depends_on() {
                let before = Subsystem::ALL.iter().position(|other| other.name() == *name).unwrap();
                assert!(before < index);
            }
        }
    }
}

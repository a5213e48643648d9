//! Plans that failed, kept in files to be told again.

use super::generate;
use super::plan::Plan;
use super::run::run;
use super::shrink::shrink;
use lockstep::replication::core::mutation::Mutation;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize, Deserialize)]
pub struct Entry {
    /// What went wrong, in a line.
    pub what: String,
    /// With this mutation the plan fails again: so it is seen that it still tests what it was kept for.
    pub mutation: Option<String>,
    pub plan: Plan,
}

pub fn read(path: &Path) -> Result<Entry, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Tells the story of a run. True when nothing was broken.
pub fn story(plan: &Plan) -> bool {
    let outcome = run(plan, true);
    println!("{:?}", plan.shape);
    outcome.story.iter().for_each(|line| println!("{line}"));
    match &outcome.broken {
        Some(broken) => println!("BROKEN at {:.3} ms: {}", broken.at as f64 / 1000.0, broken.what),
        None => println!("nothing was broken; {:?}", outcome.reach),
    }
    println!("{} steps, digest {:016x}", outcome.steps, outcome.digest);
    outcome.broken.is_none()
}

pub fn replay(what: &str) -> bool {
    if let Ok(seed) = what.parse() {
        return story(&generate::plan(seed));
    }
    match read(Path::new(what)) {
        Ok(entry) => {
            println!("{}", entry.what);
            story(&entry.plan)
        }
        Err(error) => {
            eprintln!("{error}");
            false
        }
    }
}

/// Cuts a seed down, tells its story, and keeps it.
pub fn shrink_into(seed: u64, what: String, mutation: Option<Mutation>, into: &Path) -> bool {
    let Some(plan) = shrink(&generate::plan(seed)) else {
        eprintln!("seed {seed} breaks nothing");
        return false;
    };
    story(&plan);
    let entry = Entry { what, mutation: mutation.map(|mutation| format!("{mutation:?}")), plan };
    let written = serde_json::to_string_pretty(&entry)
        .map_err(|error| error.to_string())
        .and_then(|text| std::fs::write(into, text + "\n").map_err(|error| error.to_string()));
    if let Err(error) = &written {
        eprintln!("{}: {error}", into.display());
    }
    written.is_ok()
}

//! Runs a plan; a panic of the product is one more thing that must not be.

use super::check::Broken;
use super::plan::Plan;
use super::world::{Reach, World};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub struct Outcome {
    pub broken: Option<Broken>,
    pub story: Vec<String>,
    pub digest: u64,
    pub steps: u64,
    pub reach: Reach,
}

pub fn run(plan: &Plan, with_story: bool) -> Outcome {
    let mut world = World::new(plan, with_story);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
        let what = format!("panic: {text}");
        world.broken = Some(Broken { at: world.now, what });
    }
    Outcome {
        broken: world.broken.take(),
        story: world.story.take().unwrap_or_default(),
        digest: world.digest,
        steps: world.steps,
        reach: world.reach,
    }
}

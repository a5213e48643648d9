//! Cuts a failing plan down: fewer events, a smaller pair; as long as the same rule is broken.

use super::plan::{Event, Plan};
use super::run::run;

/// Runs that a shrink may take: some seconds.
const BUDGET: u32 = 4_000;

/// What was broken, without the numbers that change from run to run.
fn rule(what: &str) -> String {
    what.split([':', '`']).next().unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect()
}

struct Shrinking {
    best: Plan,
    rule: String,
    left: u32,
}

impl Shrinking {
    /// Takes the smaller plan if it fails alike.
    fn take(&mut self, plan: Plan) -> bool {
        if self.left == 0 || plan == self.best {
            return false;
        }
        self.left -= 1;
        let fails = run(&plan, false).broken.is_some_and(|broken| rule(&broken.what) == self.rule);
        if fails {
            self.best = plan;
        }
        fails
    }

    fn drop_events(&mut self) {
        let mut size = self.best.events.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.best.events.len() {
                let mut plan = self.best.clone();
                let end = (at + size).min(plan.events.len());
                plan.events.drain(at..end);
                if !self.take(plan) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    fn shorten_events(&mut self) {
        for at in 0..self.best.events.len() {
            let mut plan = self.best.clone();
            if let Event::Host { blocks, fua, .. } = &mut plan.events[at].event {
                (*blocks, *fua) = (1, false);
                self.take(plan);
            }
        }
    }

    fn simplify_shape(&mut self) {
        let changes: [fn(&mut Plan); 6] = [
            |plan| plan.shape.volumes = 1,
            |plan| plan.shape.reactors = [1, 1],
            |plan| plan.shape.reactors[0] = 1,
            |plan| plan.shape.reactors[1] = 1,
            |plan| plan.shape.granule_blocks = 1,
            |plan| (plan.shape.lag_kib, plan.shape.buffer_kib) = (4096, 64 << 10),
        ];
        for change in changes {
            let mut plan = self.best.clone();
            change(&mut plan);
            let volumes = plan.shape.volumes;
            plan.events.retain(|timed| match timed.event {
                Event::Host { volume, .. } | Event::Disk { volume, .. } => volume < volumes,
                _ => true,
            });
            self.take(plan);
        }
    }
}

/// The smallest plan that was found to break the same rule; `None` when the plan breaks none.
pub fn shrink(plan: &Plan) -> Option<Plan> {
    let broken = run(plan, false).broken?;
    let mut shrinking = Shrinking { best: plan.clone(), rule: rule(&broken.what), left: BUDGET };
    loop {
        let before = shrinking.best.clone();
        shrinking.drop_events();
        shrinking.simplify_shape();
        shrinking.shorten_events();
        if shrinking.best == before || shrinking.left == 0 {
            return Some(shrinking.best);
        }
    }
}

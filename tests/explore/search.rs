//! Breadth first over the worlds of a plan, so that the first violation found is one with a shortest trace.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use std::time::Instant;

use tagalong::rule::{self, Rule};

use crate::moves::Move;
use crate::plan::Plan;
use crate::print::print_of;
use crate::world::World;

thread_local!(static PANIC: RefCell<String> = const { RefCell::new(String::new()) });

/// Fingerprints are as good as random already.
#[derive(Default)]
pub struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, n: u128) {
        self.0 = n as u64;
    }
}

pub struct Found {
    pub invariant: &'static str,
    pub what: String,
    pub trace: Vec<String>,
}

pub struct Outcome {
    pub states: usize,
    pub steps: usize,
    /// Worlds at rest that were judged.
    pub rests: usize,
    pub depth: u32,
    /// Everything within the plan's bounds was seen.
    pub complete: bool,
    pub found: Option<Found>,
    pub seconds: f64,
}

fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let old = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let explored = std::thread::current().name().is_some_and(|name| name.starts_with("explore-"));
            if explored {
                PANIC.with(|panic| *panic.borrow_mut() = info.to_string().replace('\n', " "));
            } else {
                old(info);
            }
        }));
    });
}

/// Explores a plan on a thread of its own, with a rule switched off, up to so many states.
pub fn explore(plan: &Plan, off: Option<Rule>, states_max: usize) -> Outcome {
    quiet_panics();
    let plan = Arc::new(plan.clone());
    let name = format!("explore-{}", plan.name);
    let work = move || {
        let outcome = search(&plan, off, states_max);
        rule::switch_off(None);
        outcome
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name).stack_size(16 << 20).spawn_scoped(scope, work);
        thread.expect("a thread").join().expect("the search itself does not panic")
    })
}

/// The violation of a step, if there is one: one that was noted, or a panic of a core.
fn attempt(world: &mut World, step: impl FnOnce(&mut World)) -> Option<(&'static str, String)> {
    match catch_unwind(AssertUnwindSafe(|| step(world))) {
        Ok(()) => world.violation.take(),
        Err(_) => Some(("assertion", PANIC.with(|panic| panic.borrow().clone()))),
    }
}

fn search(plan: &Arc<Plan>, off: Option<Rule>, states_max: usize) -> Outcome {
    let begun = Instant::now();
    let mut outcome = Outcome { states: 0, steps: 0, rests: 0, depth: 0, complete: false, found: None, seconds: 0.0 };
    let mut first = None;
    let began = catch_unwind(AssertUnwindSafe(|| first = Some(World::new(plan))));
    let Some(first) = first.filter(|_| began.is_ok()) else {
        let what = PANIC.with(|panic| panic.borrow().clone());
        outcome.found = Some(Found { invariant: "start", what, trace: Vec::new() });
        return outcome;
    };
    // What comes before is done with every rule on.
    rule::switch_off(off);
    let mut seen: HashSet<u128, BuildHasherDefault<Same>> = HashSet::default();
    let mut parents: Vec<(u32, Move)> = vec![(0, Move::Tick)];
    let mut front = VecDeque::from([(0_u32, 0_u32, first.clone())]);
    seen.insert(print_of(&first));
    'search: while let Some((number, depth, mut world)) = front.pop_front() {
        outcome.depth = depth;
        let (moves, rest) = world.moves();
        if rest {
            let mut judged = false;
            let wrong = attempt(&mut world, |world| judged = world.check_rest());
            outcome.rests += usize::from(judged);
            if let Some((invariant, what)) = wrong {
                let trace = trace(&first, &parents, number, None);
                outcome.found = Some(Found { invariant, what, trace });
                break 'search;
            }
        }
        if depth >= plan.depth {
            continue;
        }
        for step in moves {
            let mut next = world.clone();
            outcome.steps += 1;
            if let Some((invariant, what)) = attempt(&mut next, |next| next.apply(step)) {
                let trace = trace(&first, &parents, number, Some(step));
                outcome.found = Some(Found { invariant, what, trace });
                break 'search;
            }
            if seen.insert(print_of(&next)) {
                parents.push((number, step));
                front.push_back((u32::try_from(parents.len() - 1).expect("fewer states"), depth + 1, next));
            }
        }
        if parents.len() >= states_max {
            break;
        }
    }
    outcome.complete = outcome.found.is_none() && front.is_empty();
    outcome.states = parents.len();
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

/// How one comes to a world, move by move.
fn trace(first: &World, parents: &[(u32, Move)], number: u32, last: Option<Move>) -> Vec<String> {
    let mut steps: Vec<Move> = last.into_iter().collect();
    let mut at = number;
    while at != 0 {
        let (parent, step) = parents[at as usize];
        steps.push(step);
        at = parent;
    }
    let mut world = first.clone();
    let mut lines = Vec::new();
    for step in steps.into_iter().rev() {
        lines.push(world.describe(step));
        let _ = attempt(&mut world, |world| world.apply(step));
    }
    lines
}
